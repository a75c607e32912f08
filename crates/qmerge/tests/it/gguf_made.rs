//! Folders that become GGUF files, byte for byte those of llama.cpp's converter and llama-quantize (`testdata/gen/gguf_files.py`), and back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qmerge::adapters::Adapter;
use qmerge::error::{Kind, Result};
use qmerge::formats::{self, Reader};
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{EXPORTS, Export, Importance, Inputs, Options, Plan};
use qmerge::progress::Silent;
use sha2::{Digest, Sha256};

const MADE: &str = "testdata/gguf/made";
/// Names of the folders.
fn models() -> Vec<String> {
    expected().into_keys().collect()
}

pub(crate) fn place(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("qmerge-made-{}-{name}", std::process::id()))
}

pub(crate) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn export(name: &str) -> &'static dyn Export {
    EXPORTS.iter().copied().find(|export| export.id() == name).unwrap()
}

/// Writes what `options` make of a base.
fn write(base: &Path, options: &Options, output: &Path, run: &RunOptions<'_>) -> Result<()> {
    let inputs = Inputs::new(Checkpoint::open(base)?, Vec::new())?;
    let plan = Plan::new(&inputs, options)?;
    merge::run(&inputs, &plan, None, output, run, &Silent).map(drop)
}

pub(crate) fn made(
    base: &Path,
    name: &str,
    importance: Option<&Arc<Importance>>,
    run: &RunOptions<'_>,
) -> Result<Vec<u8>> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let output = place(&format!("{}.gguf", NUMBER.fetch_add(1, Ordering::Relaxed)));
    let options = Options { export: Some(export(name)), importance: importance.cloned(), ..Options::default() };
    let written = write(base, &options, &output, run);
    let bytes = std::fs::read(&output).unwrap_or_default();
    std::fs::remove_file(&output).ok();
    std::fs::remove_file(qmerge::write::path_beside(&output)).ok();
    written.map(|()| bytes)
}

pub(crate) fn expected() -> BTreeMap<String, BTreeMap<String, String>> {
    serde_json::from_str(&std::fs::read_to_string(format!("{MADE}/expected.json")).unwrap()).unwrap()
}

#[test]
fn files_are_those_of_llama_cpp() {
    let expected = expected();
    assert!(expected.len() >= 30);
    let mut wrong = Vec::new();
    for (model, files) in &expected {
        for (name, hashed) in files.iter().filter(|(name, _)| !name.contains(',')) {
            let file = match made(&Path::new(MADE).join(model), name, None, &RunOptions::default()) {
                Ok(file) => file,
                Err(error) => {
                    wrong.push(format!("{model} as {name}: {error}"));
                    continue;
                }
            };
            if hash(&file) != *hashed {
                wrong.push(format!("{model} as {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A file takes other types as llama-quantize gives them to it, and what is to keep its type keeps its bytes.
#[test]
fn a_file_of_codes_takes_other_types() {
    let expected: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_str(&std::fs::read_to_string(format!("{MADE}/again.json")).unwrap()).unwrap();
    let mut met = 0;
    for (source, files) in &expected {
        let (model, codes) = source.split_once(", ").unwrap();
        let base = place(&format!("{model}-codes.gguf"));
        let options = Options { export: Some(export(codes)), ..Options::default() };
        write(&Path::new(MADE).join(model), &options, &base, &RunOptions::default()).unwrap();
        for (name, hashed) in files {
            let file = made(&base, name, None, &RunOptions::default()).unwrap();
            assert_eq!(hash(&file), *hashed, "{source} as {name}");
            met += 1;
        }
        for file in [&base, &qmerge::write::path_beside(&base)] {
            std::fs::remove_file(file).unwrap();
        }
    }
    assert!(met >= 12);
}

/// An adapter's weights are rounded once, from the file's values with what it adds to them; all others are what they are without an adapter.
#[test]
fn an_adapter_goes_into_a_file_of_other_types() {
    let (adapter, base) = (adapter("other-types"), place("codes-for-merge.gguf"));
    let (merged, plain, floats) = (place("other-merged.gguf"), place("other-plain.gguf"), place("other-floats.gguf"));
    let run = RunOptions::default();
    let to = |name: &str| Options { export: Some(export(name)), ..Options::default() };
    write(&Path::new(MADE).join("llama-pieces"), &to("q8_0"), &base, &run).unwrap();
    write(&base, &to("q5_0"), &plain, &run).unwrap();
    for (options, output) in [(to("q5_0"), &merged), (to("f32"), &floats)] {
        let adapter = Adapter::open(&adapter, 1.0).unwrap();
        let inputs = Inputs::new(Checkpoint::open(&base).unwrap(), vec![adapter]).unwrap();
        let plan = Plan::new(&inputs, &options).unwrap();
        merge::run(&inputs, &plan, None, output, &run, &Silent).unwrap();
    }
    let open = |path: &Path| Checkpoint::open(path).unwrap();
    let files = [open(&base), open(&plain), open(&merged), open(&floats)];
    let read = |file: &Checkpoint, name: &str| file.read_small(file.get(name).unwrap(), 1 << 20).unwrap();
    let keys = |file: &Checkpoint| file.gguf.as_ref().unwrap().integer("general.file_type");
    assert_eq!(files.each_ref().map(keys), [Some(7), Some(8), Some(8), Some(0)]);
    let mut changed = Vec::new();
    for entry in &files[2].entries {
        let name = entry.name.as_str();
        if read(&files[1], name) != read(&files[2], name) {
            changed.push(name);
        }
        if entry.shape.len() == 1 {
            assert_eq!(read(&files[0], name), read(&files[2], name), "{name}");
        }
    }
    assert_eq!(changed, ["blk.0.attn_k.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight"]);
    // The file of floats has the values that were rounded.
    let again = place("other-again.gguf");
    write(&floats, &to("q5_0"), &again, &run).unwrap();
    let again_file = open(&again);
    for name in changed {
        assert_eq!(read(&again_file, name), read(&files[2], name), "{name}");
    }
    for file in [&base, &plain, &merged, &floats, &again] {
        std::fs::remove_file(file).unwrap();
        std::fs::remove_file(qmerge::write::path_beside(file)).unwrap();
    }
    std::fs::remove_dir_all(&adapter).unwrap();
}

/// A LoRA of all experts' gate and up projections, as PEFT has it for a bare parameter.
fn of_experts(experts: usize, inputs: usize, outputs: usize) -> PathBuf {
    use safetensors::tensor::{Dtype, TensorView};
    let folder = place("adapter-experts");
    std::fs::create_dir_all(&folder).unwrap();
    let bytes = |shape: &[usize]| -> Vec<u8> {
        let count = shape.iter().product::<usize>();
        (0..count).flat_map(|i| (((i * 37 % 101) as f32 - 50.0) / 400.0).to_le_bytes()).collect()
    };
    let shapes = [("A", vec![2 * experts, inputs]), ("B", vec![outputs, 2 * experts])];
    let tensors: Vec<_> = shapes
        .iter()
        .map(|(part, shape)| {
            (format!("base_model.model.model.layers.1.mlp.experts.lora_{part}.weight"), shape, bytes(shape))
        })
        .collect();
    let views =
        tensors.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("adapter_model.safetensors")).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}"#;
    std::fs::write(folder.join("adapter_config.json"), config).unwrap();
    folder
}

/// Experts lie in one tensor of the file and are weights of their own in the model: a merge into the one is a merge into the other.
#[test]
fn experts_in_a_file_are_the_models() {
    let run = RunOptions::default();
    // What is added to a bare parameter is rounded to the base's type, so both bases have the file's.
    let base = place("experts-base");
    let to_f32 = Options { to: Some(formats::by_id("f32").unwrap()), ..Options::default() };
    write(&Path::new(MADE).join("qwen3moe"), &to_f32, &base, &run).unwrap();
    let parameters = of_experts(12, 32, 64);
    for (number, adapter) in [Path::new("testdata/gguf/lora/qwen3moe"), &parameters].into_iter().enumerate() {
        let [file, folder, merged, wanted] =
            ["experts.gguf", "experts-merged", "experts-merged.gguf", "experts-wanted.gguf"]
                .map(|name| place(&format!("{number}-{name}")));
        let f32 = Options { export: Some(export("f32")), ..Options::default() };
        write(&base, &f32, &file, &run).unwrap();
        let merge = |base: &Path, options: &Options, output: &Path| {
            let adapter = Adapter::open(adapter, 1.0).unwrap();
            let inputs = Inputs::new(Checkpoint::open(base).unwrap(), vec![adapter]).unwrap();
            let plan = Plan::new(&inputs, options).unwrap();
            merge::run(&inputs, &plan, None, output, &run, &Silent).unwrap()
        };
        let report = merge(&file, &Options::default(), &merged);
        assert_eq!(report.weights.iter().filter(|weight| weight.name.contains(".experts.")).count(), [72, 24][number]);
        merge(&base, &to_f32, &folder);
        write(&folder, &f32, &wanted, &run).unwrap();
        let (one, other) = (Checkpoint::open(&merged).unwrap(), Checkpoint::open(&wanted).unwrap());
        let before = Checkpoint::open(&file).unwrap();
        let read = |file: &Checkpoint, name: &str| file.read_small(file.get(name).unwrap(), 1 << 20).unwrap();
        let mut changed = 0;
        for entry in &one.entries {
            assert!(read(&one, &entry.name) == read(&other, &entry.name), "{}", entry.name);
            changed += usize::from(read(&one, &entry.name) != read(&before, &entry.name));
        }
        assert_eq!(changed, [74, 24][number]);
        // The header is as it was: stacks, not experts.
        let head = |path: &Path| std::fs::read(path).unwrap()[..before.entries[0].start as usize].to_vec();
        assert!(head(&merged) == head(&file));
        for file in [&file, &merged, &wanted] {
            std::fs::remove_file(file).unwrap();
            std::fs::remove_file(qmerge::write::path_beside(file)).unwrap();
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
    std::fs::remove_dir_all(&parameters).unwrap();
    std::fs::remove_dir_all(&base).unwrap();
}

/// With an importance matrix: names and data of all tensors. (What a file says of the matrix is llama-quantize's own, which the library does not write.)
#[test]
fn files_are_those_of_llama_cpp_with_an_importance_matrix() {
    let importance = Arc::new(Importance::open(format!("{MADE}/imatrix.gguf").as_ref()).unwrap());
    let base = Path::new(MADE).join("llama-wide");
    let mut met = 0;
    for (name, hashed) in &expected()["llama-wide"] {
        let Some(name) = name.strip_suffix(", weighted") else { continue };
        let file = made(&base, name, Some(&importance), &RunOptions::default()).unwrap();
        let path = place("weighted.gguf");
        std::fs::write(&path, file).unwrap();
        let written = Checkpoint::open_weights(&path).unwrap();
        let mut all = Vec::new();
        for entry in &written.entries {
            all.extend(entry.name.bytes());
            all.extend(written.read_small(entry, entry.bytes).unwrap());
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(hash(&all), *hashed, "{name}");
        met += 1;
    }
    assert_eq!(met, 16);
}

#[test]
fn threads_and_memory_change_no_byte() {
    let base = Path::new(MADE).join("llama-wide");
    let one = RunOptions { threads: 1, ..RunOptions::default() };
    let many = RunOptions { threads: 7, max_memory: Some(40 << 20), ..RunOptions::default() };
    assert_eq!(made(&base, "q4_k_m", None, &one).unwrap(), made(&base, "q4_k_m", None, &many).unwrap());
}

/// A LoRA of queries, keys and what leads out of the feed-forward.
fn adapter(name: &str) -> PathBuf {
    use safetensors::tensor::{Dtype, TensorView};
    let folder = place(&format!("adapter-{name}"));
    std::fs::create_dir_all(&folder).unwrap();
    let mut random = 1_u32;
    let mut bytes = |count: usize| -> Vec<u8> {
        let mut one = || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).flat_map(|_| one().to_le_bytes()).collect()
    };
    let mut tensors = Vec::new();
    for (module, inputs, outputs) in
        [("self_attn.q_proj", 32, 32), ("self_attn.k_proj", 32, 16), ("mlp.down_proj", 64, 32)]
    {
        for (part, shape) in [("lora_A", vec![2, inputs]), ("lora_B", vec![outputs, 2])] {
            let name = format!("base_model.model.model.layers.0.{module}.{part}.weight");
            tensors.push((name, shape.clone(), bytes(shape.iter().product())));
        }
    }
    let views =
        tensors.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("adapter_model.safetensors")).unwrap();
    let config =
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "down_proj"]}"#;
    std::fs::write(folder.join("adapter_config.json"), config).unwrap();
    folder
}

/// A merge into a file is the merge into a folder that becomes a file, and it is found there.
#[test]
fn an_adapter_goes_into_the_file() {
    let (adapter, folder, output) = (adapter("made"), place("merged"), place("merged.gguf"));
    let base = Path::new(MADE).join("llama-pieces");
    let inputs = || {
        let adapter = Adapter::open(&adapter, 1.0).unwrap();
        Inputs::new(Checkpoint::open(&base).unwrap(), vec![adapter]).unwrap()
    };
    let merge = |options: &Options, output: &Path| {
        let inputs = inputs();
        let plan = Plan::new(&inputs, options).unwrap();
        merge::run(&inputs, &plan, None, output, &RunOptions::default(), &Silent).unwrap();
    };
    merge(&Options { to: Some(formats::by_id("f32").unwrap()), ..Options::default() }, &folder);
    for name in ["f32", "q4_0"] {
        let existing = qmerge::write::Existing { force: true, resume: false };
        let inputs = inputs();
        let options = Options { export: Some(export(name)), ..Options::default() };
        let plan = Plan::new(&inputs, &options).unwrap();
        let run = RunOptions { existing, ..RunOptions::default() };
        merge::run(&inputs, &plan, None, &output, &run, &Silent).unwrap();
        let merged = Checkpoint::open(&output).unwrap();
        let wanted = place("wanted.gguf");
        write(&folder, &options, &wanted, &run).unwrap();
        let other = Checkpoint::open(&wanted).unwrap();
        for entry in &merged.entries {
            let same = other.get(&entry.name).unwrap();
            let read = |checkpoint: &Checkpoint, entry| checkpoint.read_small(entry, 1 << 20).unwrap();
            assert_eq!(read(&merged, entry), read(&other, same), "{name}: {}", entry.name);
        }
        let plan = Plan::new(&inputs, &Options::default()).unwrap();
        let options = qmerge::verify::VerifyOptions::default();
        let found = qmerge::verify::verify(&inputs, &plan, &merged, &options, &Silent).unwrap();
        assert_eq!(found.answer, qmerge::verify::Answer::Yes, "{name}: {}", found.text);
        for file in [&wanted, &qmerge::write::path_beside(&wanted)] {
            std::fs::remove_file(file).unwrap();
        }
    }
    for file in [&output, &qmerge::write::path_beside(&output)] {
        std::fs::remove_file(file).unwrap();
    }
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::remove_dir_all(&adapter).unwrap();
}

/// What the language model alone calls a weight of a model that sees; `None` for one of a tower.
fn in_language_model(name: &str) -> Option<String> {
    let towers = ["vision", "visual", "audio", "projector", "connector", "image_newline"];
    let is_tower = towers.iter().any(|part| name.contains(part));
    let name = name.replace("model.language_model.", "model.").replace("language_model.", "");
    let name = name.replace("text_model.", "");
    (!is_tower).then_some(name)
}

/// A matrix of a stack with inputs as rows as it is by itself: the gate or what stands beside it, or what leads out.
fn matrix_of_stack(name: &str, stack: &[f32], shape: &[usize], number: usize, projection: &str) -> Vec<f32> {
    let &[_, inputs, outputs] = shape else { panic!("{name}") };
    let one = &stack[number * inputs * outputs..][..inputs * outputs];
    let first = if projection == "up_proj" { outputs / 2 } else { 0 };
    let rows = if projection == "down_proj" { outputs } else { outputs / 2 };
    (first..first + rows).flat_map(|row| (0..inputs).map(move |column| one[column * outputs + row])).collect()
}

/// Granite 4's feed-forward, and Granite's, which is the same in other matrices.
const FUSED_OF_GRANITE: &str = r#"FusedGated { names: ["shared_mlp.input_linear", "shared_mlp.output_linear"] }"#;
const GATED_OF_GRANITE: &str = r#"Gated { names: ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] }"#;

/// Into a file and back into a folder, all values are what they were, under the names that they had.
#[test]
fn a_folder_comes_back_from_the_file() {
    for model in &models() {
        let base = Path::new(MADE).join(model);
        let (file, back) = (place(&format!("back-{model}.gguf")), place(&format!("back-{model}")));
        let run = RunOptions::default();
        write(&base, &Options { export: Some(export("bf16")), ..Options::default() }, &file, &run).unwrap();
        let to = Some(formats::by_id("bf16").unwrap());
        write(&file, &Options { to, ..Options::default() }, &back, &run).unwrap();
        let (before, after) = (Checkpoint::open(&base).unwrap(), Checkpoint::open(&back).unwrap());
        let (weights, found) = (formats::inventory(&before).unwrap(), formats::inventory(&after).unwrap());
        for claim in &weights.weights {
            let Some(name) = &in_language_model(claim.weight.name()) else { continue };
            let Some(own) = found.weights.iter().find(|own| own.weight.name() == name) else {
                if model == "qwen3vlmoesees" {
                    // Stacked there, and one by one in Qwen 3's own mixtures.
                    let (module, last) = name.rsplit_once('.').unwrap();
                    let (mut stack, shape) = (Vec::new(), claim.weight.shape());
                    Reader::new(&before, claim).unwrap().rows(&(0..claim.weight.geometry().rows), &mut stack).unwrap();
                    for number in 0..shape[0] {
                        for projection in
                            if last == "down_proj" { &["down_proj"][..] } else { &["gate_proj", "up_proj"] }
                        {
                            let own = format!("{module}.{number}.{projection}.weight");
                            let own = found.weights.iter().find(|claim| claim.weight.name() == own).expect(&own);
                            let mut values = Vec::new();
                            let rows = 0..own.weight.geometry().rows;
                            Reader::new(&after, own).unwrap().rows(&rows, &mut values).unwrap();
                            assert_eq!(values, matrix_of_stack(name, &stack, shape, number, projection), "{name}");
                        }
                    }
                    continue;
                }
                if model == "granitehybrid" {
                    // It comes back as the Granite that it is, gate and up apart.
                    let (layer, last) = name.split_once("shared_mlp.").expect(name);
                    let parts = if last == "output_linear.weight" { &["down"][..] } else { &["gate", "up"] };
                    let (mut one, mut other) = (Vec::new(), Vec::new());
                    Reader::new(&before, claim).unwrap().rows(&(0..claim.weight.geometry().rows), &mut one).unwrap();
                    for part in parts {
                        let own = format!("{layer}mlp.{part}_proj.weight");
                        let own = found.weights.iter().find(|claim| claim.weight.name() == own).expect(&own);
                        let mut values = Vec::new();
                        Reader::new(&after, own).unwrap().rows(&(0..own.weight.geometry().rows), &mut values).unwrap();
                        other.extend(values);
                    }
                    assert_eq!(one, other, "{name}");
                    continue;
                }
                assert_eq!((model.as_str(), name.as_str()), ("gemma", "lm_head.weight"), "missing");
                continue;
            };
            let rows = 0..claim.weight.geometry().rows;
            let (mut one, mut other) = (Vec::new(), Vec::new());
            Reader::new(&before, claim).unwrap().rows(&rows, &mut one).unwrap();
            let rows = 0..own.weight.geometry().rows;
            Reader::new(&after, own).unwrap().rows(&rows, &mut other).unwrap();
            if model == "gemma3npadded" && name.ends_with("embed_tokens_per_layer.weight") {
                // Zeros stand for the tokens that it has none for.
                assert!(other.len() > one.len() && other.drain(one.len()..).all(|x| x == 0.0));
            }
            assert_eq!(one, other, "{model}: {name}");
        }
        let config = after.config.as_ref().unwrap();
        let spec = |checkpoint: &Checkpoint| qmerge::arch::spec_of(checkpoint.config.as_ref().unwrap()).unwrap();
        let layers = |checkpoint: &Checkpoint| {
            let layers = format!("{:?}", spec(checkpoint).layers);
            layers.replace(FUSED_OF_GRANITE, GATED_OF_GRANITE)
        };
        assert_eq!(layers(&before), layers(&after), "{model}");
        let class = config.json["architectures"][0].as_str().unwrap();
        assert!(class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel"), "{class}");
        assert!(back.join("tokenizer.json").is_file() && back.join("tokenizer_config.json").is_file(), "{model}");
        std::fs::remove_dir_all(&back).unwrap();
        std::fs::remove_file(&file).unwrap();
        std::fs::remove_file(qmerge::write::path_beside(&file)).unwrap();
    }
}

/// Stacks of experts that adapters name.
const PARAMETERS: [&str; 6] = [
    "mlp.experts.gate_up_proj",
    "mlp.experts.down_proj",
    "feed_forward.experts.gate_up_proj",
    "feed_forward.experts.down_proj",
    "experts.gate_up_proj",
    "experts.down_proj",
];

/// A LoRA of the matrices below a layer of these names, as PEFT has it for the base.
pub(crate) fn adapter_of(base: &Path, targets: &[&str], is_conv1d: bool) -> PathBuf {
    use safetensors::tensor::{Dtype, TensorView};
    let folder = place(&format!("adapter-{}", base.file_name().unwrap().to_str().unwrap()));
    std::fs::create_dir_all(&folder).unwrap();
    let bytes = |shape: &[usize], seed: usize| -> Vec<u8> {
        let count = shape.iter().product::<usize>();
        (0..count).flat_map(|i| ((((i + seed) * 37 % 101) as f32 - 50.0) / 400.0).to_le_bytes()).collect()
    };
    let checkpoint = Checkpoint::open(base).unwrap();
    let mut tensors = Vec::new();
    for entry in &checkpoint.entries {
        // A bare parameter, whose inputs are rows.
        let named = PARAMETERS.into_iter().find(|name| targets.contains(name) && entry.name.ends_with(name));
        if let ([experts, inputs, outputs], Some(_)) = (&entry.shape[..], named)
            && let Some((module, _)) = entry.name.rsplit_once('.')
        {
            for (part, shape) in [("lora_A", vec![2 * experts, *inputs]), ("lora_B", vec![*outputs, 2 * experts])] {
                let bytes = bytes(&shape, tensors.len());
                tensors.push((format!("base_model.model.{module}.{part}.weight"), shape, bytes));
            }
            continue;
        }
        let Some(module) = entry.name.strip_suffix(".weight") else { continue };
        if entry.shape.len() != 2 || !targets.iter().any(|target| module.ends_with(target)) {
            continue;
        }
        let [mut outputs, mut inputs] = [entry.shape[0], entry.shape[1]];
        if is_conv1d {
            std::mem::swap(&mut outputs, &mut inputs);
        }
        for (part, shape) in [("lora_A", vec![2, inputs]), ("lora_B", vec![outputs, 2])] {
            let name = format!("base_model.model.{module}.{part}.weight");
            let bytes = bytes(&shape, tensors.len());
            tensors.push((name, shape, bytes));
        }
    }
    assert!(tensors.len() >= 2 * targets.len());
    let views =
        tensors.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("adapter_model.safetensors")).unwrap();
    let (parameters, targets): (Vec<&str>, Vec<&str>) =
        targets.iter().copied().partition(|target| PARAMETERS.contains(target));
    let config = serde_json::json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": targets,
                                     "target_parameters": parameters, "fan_in_fan_out": is_conv1d });
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    folder
}

/// A merge into a file is the merge into the folder that becomes a file, whatever the file has in another order, turned or in other dimensions.
#[test]
fn a_merge_into_a_file_is_the_merge_into_its_folder() {
    let run = RunOptions::default();
    let f32 = Options { export: Some(export("f32")), ..Options::default() };
    let to_f32 = Options { to: Some(formats::by_id("f32").unwrap()), ..Options::default() };
    for (model, targets, is_conv1d) in [
        ("gptneox", &["query_key_value", "dense_h_to_4h"][..], false),
        ("falcon", &["query_key_value", "self_attention.dense"], false),
        ("gpt2", &["c_attn", "mlp.c_proj"], true),
        ("granite", &["q_proj", "k_proj"], false),
        ("glm4", &["gate_up_proj", "o_proj"], false),
        ("lfm2", &["in_proj", "out_proj", "w2"], false),
        ("phi", &["dense", "fc1"], false),
        ("deepseek2", &["kv_b_proj", "kv_a_proj_with_mqa"], false),
        ("deepseek3", &["kv_b_proj", "q_b_proj", "shared_experts.up_proj"], false),
        ("granitemoe", &["q_proj", "k_proj"], false),
        ("granitemoeshared", &["shared_mlp.input_linear", "shared_mlp.output_linear"], false),
        ("olmoe", &["q_proj", "o_proj"], false),
        ("minimax_m2", &["k_proj", "o_proj"], false),
        ("glm4moe", &["q_proj", "shared_experts.down_proj"], false),
        ("gptoss", &["q_proj", "o_proj", PARAMETERS[0]], false),
        ("gptoss", &["k_proj", PARAMETERS[1]], false),
        ("gemma4", &["q_proj", "down_proj", "per_layer_projection", "per_layer_model_projection"], false),
        ("gemma4moe", &["k_proj", "router.proj", PARAMETERS[4]], false),
        ("gemma4moe", &["o_proj", PARAMETERS[5]], false),
        (
            "gemma3n",
            &["q_proj", "modality_router", "linear_left", "altup_projections.1", "per_layer_model_projection"],
            false,
        ),
        ("llama4", &["q_proj", "shared_expert.up_proj", PARAMETERS[2]], false),
        ("llama4", &["k_proj", PARAMETERS[3]], false),
        ("ernie4_5moe", &["o_proj", "shared_experts.down_proj", "gate_proj"], false),
        ("hunyuanmoe", &["q_proj", "shared_mlp.up_proj", "wg"], false),
        ("phimoe", &["q_proj", "w1", "w2"], false),
        ("gemma3sees", &["model.layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"], false),
        ("gemma4sees", &["language_model.layers.1.self_attn.q_proj", "per_layer_projection"], false),
        ("mistral3sees", &["self_attn.k_proj", "mlp.up_proj"], false),
        ("ministral3sees", &["self_attn.q_proj", "mlp.down_proj"], false),
        ("llama4sees", &["model.layers.1.self_attn.o_proj", PARAMETERS[2]], false),
        ("qwen35sees", &["in_proj_qkv", "linear_attn.out_proj"], false),
        ("qwen2vlsees", &["self_attn.q_proj", "mlp.down_proj"], false),
        ("qwen25vlsees", &["self_attn.k_proj", "self_attn.o_proj"], false),
        ("qwen3vlsees", &["self_attn.q_proj", "mlp.up_proj"], false),
        ("qwen3vlmoesees", &["self_attn.v_proj", PARAMETERS[0]], false),
        ("qwen3vlmoesees", &["self_attn.o_proj", PARAMETERS[1]], false),
        ("llavasees", &["mlp.up_proj", "self_attn.o_proj"], false),
        ("llavanextsees", &["mlp.gate_proj", "mlp.down_proj"], false),
        ("llavaonevisionsees", &["mlp.up_proj", "self_attn.o_proj"], false),
        ("internvlsees", &["mlp.up_proj", "self_attn.o_proj"], false),
        ("idefics3sees", &["mlp.up_proj", "self_attn.o_proj"], false),
        ("smolvlmsees", &["mlp.down_proj", "self_attn.o_proj"], false),
        ("qwen3next", &["in_proj_qkvz", "in_proj_ba", "linear_attn.out_proj"], false),
        ("qwen35", &["in_proj_qkv", "in_proj_z", "in_proj_a", "linear_attn.out_proj"], false),
        ("qwen35moe", &["in_proj_qkv", "in_proj_b", "linear_attn.out_proj"], false),
    ] {
        let [base, file, folder, merged, wanted] =
            ["", ".gguf", "-merged", "-merged.gguf", "-wanted.gguf"].map(|end| place(&format!("into-{model}{end}")));
        write(&Path::new(MADE).join(model), &to_f32, &base, &run).unwrap();
        write(&base, &f32, &file, &run).unwrap();
        let adapter = adapter_of(&base, targets, is_conv1d);
        let merge = |base: &Path, options: &Options, output: &Path| {
            let adapter = Adapter::open(&adapter, 1.0).unwrap();
            let inputs = Inputs::new(Checkpoint::open(base).unwrap(), vec![adapter]).unwrap();
            let plan = Plan::new(&inputs, options).unwrap();
            merge::run(&inputs, &plan, None, output, &run, &Silent).unwrap()
        };
        merge(&file, &Options::default(), &merged);
        merge(&base, &to_f32, &folder);
        write(&folder, &f32, &wanted, &run).unwrap();
        let [before, one, other] = [&file, &merged, &wanted].map(|file| Checkpoint::open(file).unwrap());
        let read = |file: &Checkpoint, name: &str| file.read_small(file.get(name).unwrap(), 1 << 20).unwrap();
        let mut changed = 0;
        for entry in &one.entries {
            assert!(read(&one, &entry.name) == read(&other, &entry.name), "{model}: {}", entry.name);
            changed += usize::from(read(&one, &entry.name) != read(&before, &entry.name));
        }
        assert!(changed >= targets.len(), "{model}: {changed}");
        for file in [&file, &merged, &wanted] {
            std::fs::remove_file(file).unwrap();
            std::fs::remove_file(qmerge::write::path_beside(file)).unwrap();
        }
        for folder in [&base, &folder, &adapter] {
            std::fs::remove_dir_all(folder).unwrap();
        }
    }
}

/// What an adapter for a model that sees is called since transformers 4.52, and before, is the language model's own in a file of it.
#[test]
fn an_adapter_for_a_model_that_sees_goes_into_its_file() {
    let base = Path::new(MADE).join("gemma3sees");
    let [file, one, other, wanted] = ["", "-one", "-other", "-wanted"].map(|end| place(&format!("sees{end}.gguf")));
    let run = RunOptions::default();
    let f32 = Options { export: Some(export("f32")), ..Options::default() };
    write(&base, &f32, &file, &run).unwrap();
    let adapter = renamed_copy(&base, "self_attn.v_proj");
    let merge = |base: &Path, adapter: &Path, options: &Options, output: &Path| {
        let inputs = Inputs::new(Checkpoint::open(base).unwrap(), vec![Adapter::open(adapter, 1.0).unwrap()]).unwrap();
        let plan = Plan::new(&inputs, options).unwrap();
        merge::run(&inputs, &plan, None, output, &run, &Silent).unwrap();
        std::fs::read(output).unwrap()
    };
    let [older, newer] = ["language_model.model.layers", "model.language_model.layers"].map(adapter);
    let merged = merge(&file, &older, &Options::default(), &one);
    assert!(merged == merge(&file, &newer, &Options::default(), &other));
    assert!(merged != std::fs::read(&file).unwrap());
    // In f32 nothing is rounded between the two.
    assert!(merged == merge(&base, &newer, &f32, &wanted));
    for file in [&file, &one, &other, &wanted] {
        std::fs::remove_file(file).unwrap();
        std::fs::remove_file(qmerge::write::path_beside(file)).unwrap();
    }
    for folder in [older, newer] {
        std::fs::remove_dir_all(folder).unwrap();
    }
}

/// Makes adapters of the layers of a model that sees, under the names that are asked for.
fn renamed_copy(base: &Path, target: &str) -> impl Fn(&str) -> PathBuf {
    let made = adapter_of(base, &[&format!("model.layers.0.{target}"), &format!("model.layers.1.{target}")], false);
    let [tensors, config] =
        ["adapter_model.safetensors", "adapter_config.json"].map(|name| std::fs::read(made.join(name)).unwrap());
    std::fs::remove_dir_all(made).unwrap();
    move |layers| {
        let folder = place(&format!("adapter-{layers}"));
        std::fs::create_dir_all(&folder).unwrap();
        let own = safetensors::SafeTensors::deserialize(&tensors).unwrap();
        let all =
            own.tensors().into_iter().map(|(name, view)| (name.replace("language_model.model.layers", layers), view));
        safetensors::serialize_to_file(all, None, &folder.join("adapter_model.safetensors")).unwrap();
        std::fs::write(folder.join("adapter_config.json"), &config).unwrap();
        folder
    }
}

/// A tower is not in the file: what an adapter changes there is refused by name, or left out where that is asked for.
#[test]
fn an_adapter_of_a_tower_is_not_dropped() {
    let base = Path::new(MADE).join("gemma4sees");
    let plan = |targets: &[&str], allow_unused: bool| {
        let adapter = adapter_of(&base, targets, false);
        let inputs =
            Inputs::new(Checkpoint::open(&base).unwrap(), vec![Adapter::open(&adapter, 1.0).unwrap()]).unwrap();
        std::fs::remove_dir_all(&adapter).unwrap();
        Plan::new(&inputs, &Options { export: Some(export("q8_0")), allow_unused, ..Options::default() })
    };
    let both = ["mlp.up_proj.linear", "language_model.layers.0.self_attn.v_proj", "embedding_projection"];
    for (targets, allow_unused) in [(&both[..], false), (&both[..1], false), (&both[..1], true)] {
        let error = plan(targets, allow_unused).unwrap_err();
        let text = error.to_string();
        assert!(error.kind() == Kind::Mismatch && text.contains("mmproj"), "{text}");
        assert!(text.contains("base_model.model.model."), "{text}");
        let hint = error.hint().unwrap();
        assert!(hint.contains("--mmproj") && hint.contains("--allow-unused") == (targets.len() > 1), "{hint}");
    }
    let plan = plan(&both, true).unwrap();
    assert_eq!((plan.accounting[0].merged, plan.accounting[0].unused.len()), (2, 4));
    assert!(plan.warnings.iter().any(|text| text.starts_with("4 of 6 adapter tensors")), "{:?}", plan.warnings);
}

#[test]
fn an_adapter_of_what_leads_from_a_tower_is_not_dropped() {
    for (model, target) in [
        ("qwen2vlsees", "attn.qkv"),
        ("qwen3vlsees", "linear_fc1"),
        ("smolvlmsees", "modality_projection.proj"),
        ("llavanextsees", "linear_1"),
    ] {
        let base = Path::new(MADE).join(model);
        let adapter = adapter_of(&base, &[target], false);
        let inputs =
            Inputs::new(Checkpoint::open(&base).unwrap(), vec![Adapter::open(&adapter, 1.0).unwrap()]).unwrap();
        std::fs::remove_dir_all(&adapter).unwrap();
        let options = Options { export: Some(export("q8_0")), ..Options::default() };
        let error = Plan::new(&inputs, &options).unwrap_err();
        assert!(error.kind() == Kind::Mismatch && error.to_string().contains("mmproj"), "{model}: {error}");
    }
}

/// Qwen 3 VL's experts are published with inputs as rows, and transformers saves them as they lie in memory: by their dimensions it is known which.
#[test]
fn experts_of_either_order_make_the_same_file() {
    let folder = changed("qwen3vlmoesees", "config.json", |text| text);
    let weights = folder.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let turn = |shape: &[usize], data: &[u8]| -> Vec<u8> {
        let &[experts, rows, columns] = shape else { panic!("{shape:?}") };
        let at = |expert, row, column| 2 * ((expert * rows + row) * columns + column);
        let order = (0..experts).flat_map(|e| (0..columns).flat_map(move |c| (0..rows).map(move |r| at(e, r, c))));
        order.flat_map(|at| [data[at], data[at + 1]]).collect()
    };
    let turned: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| match view.shape() {
            &[experts, rows, columns] if name.contains(".experts.") => {
                (name, vec![experts, columns, rows], turn(view.shape(), view.data()))
            }
            shape => (name, shape.to_vec(), view.data().to_vec()),
        })
        .collect();
    let views = turned.iter().map(|(name, shape, data)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, &weights).unwrap();
    let own = Checkpoint::open(&folder).unwrap();
    let published = Checkpoint::open(&Path::new(MADE).join("qwen3vlmoesees")).unwrap();
    let name = "model.language_model.layers.0.mlp.experts.down_proj";
    assert_ne!(own.get(name).unwrap().shape, published.get(name).unwrap().shape);
    let written = |name: &str| {
        let path = place(name);
        let base = if name.starts_with("turned") { folder.clone() } else { Path::new(MADE).join("qwen3vlmoesees") };
        std::fs::write(&path, made(&base, "f16", None, &RunOptions::default()).unwrap()).unwrap();
        let file = Checkpoint::open_weights(&path).unwrap();
        let read = |entry: &qmerge::open::Entry| (entry.name.clone(), file.read_small(entry, entry.bytes).unwrap());
        let tensors: Vec<_> = file.entries.iter().map(read).collect();
        std::fs::remove_file(&path).unwrap();
        tensors
    };
    assert!(written("turned.gguf") == written("published.gguf"));
    std::fs::remove_dir_all(&folder).unwrap();
}

/// llama.cpp does not load a file with a bias that its graph of the architecture has no place for.
#[test]
fn a_bias_that_llama_cpp_has_no_place_for_is_told_of() {
    let folder = changed("qwen3", "config.json", |text| text.replacen('{', "{\"attention_bias\": true,", 1));
    let weights = folder.join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let zeros = vec![0_u8; 2 * 128];
    let mut all: Vec<_> = tensors.tensors();
    for part in ["q_proj", "o_proj"] {
        let rows = if part == "q_proj" { 128 } else { 64 };
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, vec![rows], &zeros[..2 * rows]);
        all.push((format!("model.layers.0.self_attn.{part}.bias"), view.unwrap()));
    }
    safetensors::serialize_to_file(all, None, &weights).unwrap();
    let inputs = Inputs::new(Checkpoint::open(&folder).unwrap(), Vec::new()).unwrap();
    let options = Options { export: Some(export("f16")), ..Options::default() };
    let warnings = Plan::new(&inputs, &options).unwrap().warnings;
    assert!(warnings.iter().any(|text| text.ends_with("have no `blk.0.attn_output.bias`")), "{warnings:?}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A copy of a model with one of its files changed.
fn changed(model: &str, name: &str, change: impl FnOnce(String) -> String) -> PathBuf {
    // Tests run side by side.
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let folder = place(&format!("changed-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    std::fs::remove_dir_all(&folder).ok();
    std::fs::create_dir_all(&folder).unwrap();
    for file in std::fs::read_dir(Path::new(MADE).join(model)).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
    }
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    std::fs::write(folder.join(name), change(text)).unwrap();
    folder
}

/// llama.cpp has no key for a window in this architecture.
#[test]
fn what_the_keys_lose_is_told_of() {
    let mistral =
        |text: String| text.replace("\"model_type\": \"llama\"", "\"model_type\": \"mistral\", \"sliding_window\": 16");
    let folder = changed("llama-pieces", "config.json", mistral);
    let inputs = Inputs::new(Checkpoint::open(&folder).unwrap(), Vec::new()).unwrap();
    let options = Options { export: Some(export("f16")), ..Options::default() };
    let plan = Plan::new(&inputs, &options).unwrap();
    assert!(plan.warnings.iter().any(|text| text.ends_with(": the window of attention")), "{:?}", plan.warnings);
    std::fs::remove_dir_all(&folder).unwrap();
    for model in &models() {
        let inputs = Inputs::new(Checkpoint::open(&Path::new(MADE).join(model)).unwrap(), Vec::new()).unwrap();
        let mut warnings = Plan::new(&inputs, &options).unwrap().warnings;
        if model.ends_with("sees") || model.ends_with("hears") {
            assert!(warnings.pop().is_some_and(|text| text.contains("mmproj")), "{model}");
        }
        // Of widths that llama.cpp does not have (`gguf_loads`), or of as many layers as the tower adds to (`gguf_bounds`).
        let is_narrow = model.starts_with("gemma3n") || model.starts_with("qwen3vl") || model == "olmoe";
        let is_told = |text: &String| {
            text.starts_with("llama.cpp ") && text.contains("its models of the architecture")
                || text.starts_with("llama.cpp runs the model otherwise")
                || text.starts_with("llama.cpp does not load the file, or stops")
        };
        assert_eq!((warnings.is_empty(), warnings.iter().all(is_told)), (!is_narrow, true), "{model}: {warnings:?}");
    }
}

#[test]
fn what_cannot_be_said_is_refused_by_name() {
    let told = |folder: PathBuf| {
        let error = made(&folder, "f16", None, &RunOptions::default()).unwrap_err();
        std::fs::remove_dir_all(&folder).unwrap();
        (error.kind(), error.to_string())
    };
    let family = |text: String| text.replace("\"model_type\": \"qwen2\"", "\"model_type\": \"bloom\"");
    let (kind, text) = told(changed("qwen2", "config.json", family));
    assert!(kind == Kind::Unsupported && text.contains("`bloom`"), "{text}");
    let (kind, text) = told(changed("qwen2", "tokenizer.json", |text| text.replace("(?i:'s|", "(?i:'x|")));
    assert!(kind == Kind::Unsupported && text.contains("cuts text"), "{text}");
    let (kind, text) = told(changed("qwen2", "config.json", |text| text.replace("1000000.0", "\"high\"")));
    assert!(kind == Kind::Malformed && text.contains("rope_theta"), "{text}");
    let (kind, text) = told(changed("qwen2", "tokenizer.json", |text| text[..text.len() / 2].to_owned()));
    assert!(kind == Kind::Malformed && text.contains("tokenizer.json"), "{text}");
    let (kind, text) = told(changed("qwen2", "tokenizer.json", |text| text.replace("\"id\":289", "\"id\":4000000000")));
    assert!(kind == Kind::Mismatch && text.contains("4000000000"), "{text}");
    let without = changed("qwen2", "config.json", |text| text);
    std::fs::remove_file(without.join("tokenizer.json")).unwrap();
    let (kind, text) = told(without);
    assert!(kind == Kind::Mismatch && text.contains("no tokenizer"), "{text}");
}
