//! Stacks of experts that are stored in codes, rounded matrix by matrix by what each of them is given.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qmerge::adapters::Adapter;
use qmerge::dtype;
use qmerge::edited::Edited;
use qmerge::formats::{self, Claim, Reader, Settings};
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Action, Data, EXPORTS, Export, Inputs, Method, Options, Plan, Promotion};
use qmerge::progress::Silent;
use qmerge::round::{self, InputMoments, matrix_name};
use safetensors::Dtype;
use serde_json::json;

use crate::calibrated::Given;
use crate::written::{self, Tensor, f32s};

const EXPERTS: usize = 4;
/// Those that the adapter changes.
const CHANGED: [usize; 2] = [0, 2];
const WIDTH: usize = 32;

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Moments of inputs that go together, others for each matrix.
fn moments(seed: u32) -> InputMoments {
    let tokens = 3 * WIDTH;
    let (own, shared) = (numbers(tokens * WIDTH, seed), numbers(tokens, seed + 1));
    let x = |token: usize, i: usize| f64::from(own[token * WIDTH + i] + 2.0 * shared[token]);
    let value = |at: usize| (0..tokens).map(|t| x(t, at / WIDTH) * x(t, at % WIDTH)).sum::<f64>() / tokens as f64;
    InputMoments { features: WIDTH, tokens, values: (0..WIDTH * WIDTH).map(|at| value(at) as f32).collect() }
}

/// An adapter of some of the experts of the first layer.
pub(crate) fn adapter(folder: &Path, module: &str) -> Adapter {
    let mut tensors = Vec::new();
    for expert in CHANGED {
        for (number, projection) in ["gate_proj", "up_proj", "down_proj"].iter().enumerate() {
            let seed = (10 * expert + number) as u32;
            let factor = |part: &str, shape: [usize; 2], seed: u32, scale: f32| {
                let name = format!("base_model.model.{module}.{expert}.{projection}.lora_{part}.weight");
                f32s(name, &shape, numbers(2 * WIDTH, seed).into_iter().map(|x| scale * x))
            };
            tensors.push(factor("A", [2, WIDTH], seed, 0.2));
            tensors.push(factor("B", [WIDTH, 2], seed + 5, 0.05));
        }
    }
    let targets = ["gate_proj", "up_proj", "down_proj"];
    let config = json!({ "peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": targets });
    written::adapter(folder, config, &tensors);
    Adapter::open(folder, 1.0).unwrap()
}

fn bytes(output: &Path) -> Vec<u8> {
    let file = if output.is_dir() { &output.join("model.safetensors") } else { output };
    std::fs::read(file).unwrap()
}

/// A matrix of `rows` turned over.
fn turned(values: &[f32], rows: usize) -> Vec<f32> {
    let cols = values.len() / rows;
    (0..values.len()).map(|at| values[at % rows * cols + at / rows]).collect()
}

/// tr(E H Eᵀ) of a matrix, (outputs, inputs).
fn error(wanted: &[f32], stored: &[f32], moments: &InputMoments) -> f64 {
    let e = |row: usize, input: usize| f64::from(stored[row * WIDTH + input] - wanted[row * WIDTH + input]);
    let h = |i: usize, j: usize| f64::from(moments.values[i * WIDTH + j]);
    let of_row =
        |o: usize| -> f64 { (0..WIDTH).map(|i| e(o, i) * (0..WIDTH).map(|j| h(i, j) * e(o, j)).sum::<f64>()).sum() };
    (0..wanted.len() / WIDTH).map(of_row).sum()
}

/// A base, and how it is merged into.
struct Case<'c> {
    title: &'c str,
    base: &'c Path,
    adapter: &'c Path,
    /// The path of the experts.
    module: &'c str,
    export: Option<&'static dyn Export>,
    output: &'c Path,
}

impl Case<'_> {
    /// Matrices of stacks are calibrated each by its own moments: their errors are smaller there than what is drawn, or what is nearest, and no thread changes a byte.
    fn check(&self) {
        let &Self { title, base, module, export, .. } = self;
        let inputs = Inputs::new(Checkpoint::open(base).unwrap(), vec![adapter(self.adapter, module)]).unwrap();
        let stacks = ["gate_up_proj", "down_proj"].map(|name| format!("{module}.{name}"));
        let names = stacks.iter().flat_map(|stack| (0..EXPERTS).map(|expert| matrix_name(stack, expert)));
        let known: Vec<(String, InputMoments)> =
            names.enumerate().map(|(number, name)| (name, moments(100 + number as u32))).collect();
        let data = Data::Known(Arc::new(known.iter().map(|(name, _)| name.clone()).collect()));
        let merged = |method: Method, threads: usize| {
            let options = Options { rounding: method, data: data.clone(), export, ..Options::default() };
            let plan = Plan::new(&inputs, &options).unwrap();
            remove(self.output);
            let options = RunOptions { threads, ..RunOptions::default() };
            let layer = known.iter().map(|(name, moments)| (name.as_str(), moments)).collect();
            let calibration = &mut Given(vec![layer]);
            let report = merge::run(&inputs, &plan, Some(calibration), self.output, &options, &Silent)
                .unwrap_or_else(|error| panic!("{title}: {error}"));
            (plan, report)
        };
        let mut errors: Vec<HashMap<String, f64>> = Vec::new();
        // In place, both keep the base's scales.
        let other = if export.is_some() { "nearest" } else { "stochastic" };
        for method in [Method::Auto, Method::Named(round::by_id(other).unwrap())] {
            let (plan, report) = merged(method, 2);
            let checkpoint = Checkpoint::open(self.output).unwrap();
            let written = formats::inventory(&checkpoint).unwrap();
            let is_auto = matches!(method, Method::Auto);
            let mut own_errors = HashMap::new();
            for step in plan.steps.iter().filter(|step| stacks.contains(&step.name)) {
                let Action::Recode(recode) = &step.action else { panic!("{title}: {} is copied", step.name) };
                assert_eq!(recode.rounding.id(), if is_auto { "adapter" } else { other }, "{title}");
                let of = report.weights.iter().find(|weight| weight.name == step.name).unwrap();
                assert!(!is_auto || (of.kept_output.unwrap() - 1.0).abs() < 0.1, "{title} {:?}", of.kept_output);
                let claim = written.weights.iter().find(|claim| claim.weight.name() == step.name).unwrap();
                let (mut base, mut wanted, mut stored) = (Vec::new(), Vec::new(), Vec::new());
                let all = |claim: &Claim| 0..claim.weight.geometry().rows;
                Edited::new(&inputs, recode).unwrap().rows(&all(&recode.from), &mut base, &mut wanted).unwrap();
                Reader::new(&checkpoint, claim).unwrap().rows(&all(claim), &mut stored).unwrap();
                let each = wanted.len() / EXPERTS;
                let parts = wanted.chunks(each).zip(base.chunks(each)).zip(stored.chunks(each));
                for (expert, ((wanted, base), stored)) in parts.enumerate() {
                    let name = matrix_name(&step.name, expert);
                    let moments = &known.iter().find(|(known, _)| *known == name).unwrap().1;
                    assert_eq!(wanted != base, CHANGED.contains(&expert), "{title} {name}");
                    if !CHANGED.contains(&expert) && export.is_none() && is_auto {
                        assert!(stored == base, "{title} {name} changed");
                    }
                    // Codes have outputs as rows, whatever the folder has.
                    let wanted = if recode.transposed { turned(wanted, WIDTH) } else { wanted.to_vec() };
                    own_errors.insert(name, error(&wanted, stored, moments));
                }
            }
            assert_eq!(own_errors.len(), 2 * EXPERTS, "{title}");
            errors.push(own_errors);
        }
        for (name, calibrated) in &errors[0] {
            let without = errors[1][name];
            assert!(*calibrated <= 0.85 * without, "{title} {name}: {calibrated:e}, {other} {without:e}");
        }
        let written = |threads: usize| {
            merged(Method::Auto, threads);
            bytes(self.output)
        };
        assert!(written(1) == written(3), "{title}: other bytes on three threads");
        remove(self.output);
    }
}

fn remove(output: &Path) {
    if output.is_dir() {
        std::fs::remove_dir_all(output).unwrap();
    } else {
        std::fs::remove_file(output).ok();
        std::fs::remove_file(qmerge::write::path_beside(output)).ok();
    }
}

fn place(name: &str) -> PathBuf {
    let root = std::env::temp_dir().join(format!("qmerge-stacks-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&root).unwrap();
    root
}

#[test]
fn matrices_in_files_are_rounded_by_what_each_is_given() {
    let root = place("files");
    // In the folder, inputs are rows of gpt-oss' experts, and gates and ups alternate.
    for (model, module) in [("gptoss", "model.layers.0.mlp.experts"), ("gemma4moe", "model.layers.0.experts")] {
        let folder = PathBuf::from("testdata/gguf/made").join(model);
        for to in ["q8_0", "q4_0", "q4_1", "iq4_nl"] {
            let export = EXPORTS.iter().copied().find(|export| export.id() == to);
            let file = root.join(format!("{model}-{to}.gguf"));
            let inputs = Inputs::new(Checkpoint::open(&folder).unwrap(), Vec::new()).unwrap();
            let plan = Plan::new(&inputs, &Options { export, ..Options::default() }).unwrap();
            merge::run(&inputs, &plan, None, &file, &RunOptions::default(), &Silent).unwrap();
            // Into the file at its types, and from the folder into such a file.
            for (base, export) in [(&file, None), (&folder, export)] {
                let title = format!("{model} {to} {}", if export.is_some() { "from the folder" } else { "in place" });
                let (adapter, output) = (root.join(format!("{model}-lora")), root.join("merged.gguf"));
                Case { title: &title, base, adapter: &adapter, module, export, output: &output }.check();
            }
        }
    }
    std::fs::remove_dir_all(root).unwrap();
}

const MODULE: &str = "model.layers.0.mlp.experts";
const MXFP4: &str = r#"{"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}"#;
const FP8: &str =
    r#"{"model_type": "qwen3_moe", "quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}}"#;

/// A folder with stacks of one layer: gpt-oss' blocks under exponents of their own, or 8-bit floats under scales of tiles, which all matrices of a stack have in one tensor.
fn folder(base: &Path, config: &str) {
    let mut tensors: Vec<Tensor> = Vec::new();
    for (number, (name, outputs)) in [("gate_up_proj", 2 * WIDTH), ("down_proj", WIDTH)].into_iter().enumerate() {
        let (name, count) = (format!("{MODULE}.{name}"), EXPERTS * outputs * WIDTH);
        let own = |count: usize| numbers(count, 40 + number as u32);
        if config == MXFP4 {
            let blocks = own(count / 2).iter().map(|x| (x.abs() * 256.0) as u8).collect();
            tensors.push((format!("{name}_blocks"), Dtype::U8, vec![EXPERTS, outputs, 1, 16], blocks));
            let exponents = vec![121; EXPERTS * outputs];
            tensors.push((format!("{name}_scales"), Dtype::U8, vec![EXPERTS, outputs, 1], exponents));
        } else {
            // None of these is NaN.
            let code = |x: &f32| ((x.abs() * 100.0) as u8) | if *x < 0.0 { 0x80 } else { 0 };
            let codes = own(count).iter().map(code).collect();
            let tiles = [EXPERTS, outputs / 16, WIDTH / 16];
            let scales = own(tiles.iter().product()).iter().flat_map(|x| (0.002 + 0.001 * x).to_le_bytes()).collect();
            tensors.push((name.clone(), Dtype::F8_E4M3, vec![EXPERTS, outputs, WIDTH], codes));
            tensors.push((format!("{name}_scale_inv"), Dtype::F32, tiles.to_vec(), scales));
        }
    }
    written::model(base, config, &tensors);
}

#[test]
fn matrices_in_folders_are_rounded_by_what_each_is_given() {
    let root = place("folders");
    for (title, config) in [("mxfp4", MXFP4), ("fp8", FP8)] {
        let (base, adapter, output) = (root.join(title), root.join("lora"), root.join("merged"));
        folder(&base, config);
        Case { title, base: &base, adapter: &adapter, module: MODULE, export: None, output: &output }.check();
    }
    std::fs::remove_dir_all(root).unwrap();
}

/// Values of all rows of a weight.
fn read(checkpoint: &Checkpoint, claim: &Claim) -> Vec<f32> {
    let mut values = Vec::new();
    Reader::new(checkpoint, claim).unwrap().rows(&(0..claim.weight.geometry().rows), &mut values).unwrap();
    values
}

/// gpt-oss' codes have outputs as rows, and inputs are rows of its stacks where they are plain.
#[test]
fn stacks_of_codes_become_what_the_family_has() {
    let (root, run) = (place("turned"), RunOptions::default());
    let (base, output) = (root.join("base"), root.join("plain"));
    folder(&base, MXFP4);
    let inputs = Inputs::new(Checkpoint::open(&base).unwrap(), vec![adapter(&root.join("lora"), MODULE)]).unwrap();
    let options = Options { to: Some(formats::by_id("bf16").unwrap()), ..Options::default() };
    let plan = Plan::new(&inputs, &options).unwrap();
    merge::run(&inputs, &plan, None, &output, &run, &Silent).unwrap();
    let checkpoint = Checkpoint::open(&output).unwrap();
    let written = formats::inventory(&checkpoint).unwrap();
    for (name, outputs) in [("gate_up_proj", 2 * WIDTH), ("down_proj", WIDTH)] {
        let name = format!("{MODULE}.{name}");
        let claim = written.weights.iter().find(|claim| claim.weight.name() == name).unwrap();
        assert_eq!(claim.weight.shape(), [EXPERTS, WIDTH, outputs], "{name}");
        let step = plan.steps.iter().find(|step| step.name == name).unwrap();
        let Action::Recode(recode) = &step.action else { panic!("{name} is copied") };
        assert_eq!(recode.rounding.id(), "nearest", "{name}");
        let (mut before, mut wanted) = (Vec::new(), Vec::new());
        Edited::new(&inputs, recode).unwrap().rows(&(0..EXPERTS * outputs), &mut before, &mut wanted).unwrap();
        let nearest = |x: &f32| half::bf16::from_f32(*x).to_f32();
        let matrices = wanted.chunks(outputs * WIDTH).flat_map(|matrix| turned(matrix, outputs));
        assert!(read(&checkpoint, claim) == matrices.map(|x| nearest(&x)).collect::<Vec<_>>(), "{name}");
    }
    std::fs::remove_dir_all(root).unwrap();
}

/// Levels of 4-bit floats.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// What gpt-oss' codes were made from has inputs as rows: each code is the nearest to its own value there with what the adapter adds.
#[test]
fn codes_are_nearest_to_an_original_of_another_order() {
    let (root, run) = (place("original"), RunOptions::default());
    let (base, output) = (root.join("base"), root.join("merged"));
    folder(&base, MXFP4);
    let open = || Checkpoint::open(&base).unwrap();
    let inputs = Inputs::new(open(), vec![adapter(&root.join("lora"), MODULE)]).unwrap();
    let stacks = [("gate_up_proj", 2 * WIDTH), ("down_proj", WIDTH)];
    let name = |leaf: &str| format!("{MODULE}.{leaf}");
    let find = |of: &Checkpoint, leaf: &str| {
        let inventory = formats::inventory(of).unwrap();
        read(of, inventory.weights.iter().find(|claim| claim.weight.name() == name(leaf)).unwrap())
    };
    let mut originals = HashMap::new();
    let mut tensors = Vec::new();
    for (seed, (leaf, outputs)) in stacks.into_iter().enumerate() {
        let noise = numbers(EXPERTS * outputs * WIDTH, 90 + seed as u32);
        let values: Vec<f32> = find(&open(), leaf).iter().zip(noise).map(|(x, noise)| x + 0.01 * noise).collect();
        let family: Vec<f32> = values.chunks(outputs * WIDTH).flat_map(|matrix| turned(matrix, outputs)).collect();
        let bytes: Vec<u8> = family.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push((name(leaf), Dtype::F32, vec![EXPERTS, WIDTH, outputs], bytes));
        originals.insert(leaf, values);
    }
    let original = root.join("original");
    written::model(&original, r#"{"model_type": "gpt_oss"}"#, &tensors);
    let inputs = inputs.with_original(Checkpoint::open(&original).unwrap()).unwrap();
    let rounding = Method::Named(round::by_id("original").unwrap());
    let plan = Plan::new(&inputs, &Options { rounding, ..Options::default() }).unwrap();
    merge::run(&inputs, &plan, None, &output, &run, &Silent).unwrap();
    let merged = Checkpoint::open(&output).unwrap();
    for (leaf, outputs) in stacks {
        let step = plan.steps.iter().find(|step| step.name == name(leaf)).unwrap();
        let Action::Recode(recode) = &step.action else { panic!("{leaf} is copied") };
        let (mut before, mut wanted) = (Vec::new(), Vec::new());
        Edited::new(&inputs, recode).unwrap().rows(&(0..EXPERTS * outputs), &mut before, &mut wanted).unwrap();
        let scale = 1.0 / 64.0;
        for (at, stored) in find(&merged, leaf).into_iter().enumerate() {
            let aim = originals[leaf][at] + (wanted[at] - before[at]);
            let off = |level: f32| (level * scale - aim.abs()).abs();
            let best = E2M1.into_iter().map(off).fold(f32::INFINITY, f32::min);
            assert!((stored - aim).abs() <= best + 1e-6, "{leaf} {at}: {stored} for {aim}");
        }
    }
    std::fs::remove_dir_all(root).unwrap();
}

/// What rounding left of stacks is in no LoRA, and it is said of them.
#[test]
fn a_residual_adapter_of_stacks_is_refused_by_name() {
    let root = place("residual");
    let base = root.join("base");
    folder(&base, FP8);
    let inputs = Inputs::new(Checkpoint::open(&base).unwrap(), vec![adapter(&root.join("lora"), MODULE)]).unwrap();
    let plan = Plan::new(&inputs, &Options { residual_rank: Some(2), ..Options::default() }).unwrap();
    let run = RunOptions::default();
    let error = merge::run(&inputs, &plan, None, &root.join("merged"), &run, &Silent).unwrap_err().to_string();
    assert!(error.contains("of none can be held") && error.contains("stack of experts"), "{error}");
    std::fs::remove_dir_all(root).unwrap();
}

/// Bytes of a file's tensors, with their types; of stacks those of each matrix.
fn tensors(path: &Path) -> HashMap<String, (dtype::Dtype, Vec<u8>)> {
    let file = Checkpoint::open(path).unwrap();
    let all = file.entries.iter();
    all.map(|entry| (entry.name.clone(), (entry.dtype, file.read_small(entry, 1 << 20).unwrap()))).collect()
}

/// What ggml's encoder makes in Q8_0 of a matrix in F32.
fn wider(exact: &[u8]) -> Vec<u8> {
    let values: Vec<f32> = exact.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let made = formats::by_id("q8_0").unwrap().create("w", &[WIDTH, WIDTH], dtype::Dtype::F32, &Settings::default());
    let mut encoded = vec![Vec::new()];
    made.unwrap().writer().unwrap().encode(&[None], 0..WIDTH, &values, &mut encoded);
    encoded.remove(0)
}

/// Experts of a layer lie in one tensor: what one of them takes all do, also those that no adapter changes.
#[test]
fn experts_take_a_wider_type_together() {
    let (root, run) = (place("promoted"), RunOptions::default());
    let export = |id: &str| EXPORTS.iter().copied().find(|export| export.id() == id);
    let output = root.join("merged.gguf");
    let merged = |inputs: &Inputs, options: &Options, output: &Path| {
        remove(output);
        let plan = Plan::new(inputs, options).unwrap();
        let report = merge::run(inputs, &plan, None, output, &run, &Silent).unwrap();
        (plan, report)
    };
    for model in ["gptoss", "qwen3moe"] {
        let folder = PathBuf::from("testdata/gguf/made").join(model);
        let plain = Inputs::new(Checkpoint::open(&folder).unwrap(), Vec::new()).unwrap();
        let narrow = root.join(format!("{model}.gguf"));
        merged(&plain, &Options { export: export("q4_0"), ..Options::default() }, &narrow);
        for (base, to) in [(&narrow, None), (&folder, export("q4_0"))] {
            let inputs = Checkpoint::open(base).unwrap();
            let inputs = Inputs::new(inputs, vec![adapter(&root.join("lora"), MODULE)]).unwrap();
            let rounding = Method::Named(round::by_id("nearest").unwrap());
            merged(&inputs, &Options { export: export("f32"), ..Options::default() }, &output);
            let exact = tensors(&output);
            let options = Options { rounding, export: to, ..Options::default() };
            let (plan, report) = merged(&inputs, &options, &output);
            let before = tensors(&output);
            // Room for one stack, of which each matrix takes 34 bytes in place of 18 for 32 values; gpt-oss' gates and ups are one weight.
            let is_down = |name: &&String| name.starts_with("blk.0.ffn_down_exps.") && name.ends_with(".weight");
            let experts = before.keys().filter(is_down).count();
            let (more, most) = ((experts * WIDTH * 16) as f64, plan.output_bytes() as f64);
            let promotion = Promotion::default();
            assert_eq!(promotion.chosen(&plan, &report.weights, 0.99 * more / most).tensors.len(), 0, "{model}");
            let chosen = promotion.chosen(&plan, &report.weights, 1.01 * more / most);
            assert_eq!(chosen.tensors.len(), 1, "{model}: {chosen:?}");
            let gates = HashSet::from(["blk.0.ffn_gate_exps.weight".to_owned()]);
            for promotion in [chosen, Promotion { tensors: Arc::new(gates), ..promotion }] {
                let mut wide: Vec<String> = promotion.tensors.iter().map(|name| name.replace("weight", "")).collect();
                if model == "gptoss" && wide.contains(&"blk.0.ffn_gate_exps.".to_owned()) {
                    wide.push("blk.0.ffn_up_exps.".to_owned());
                }
                merged(&inputs, &Options { promote: Some(promotion), ..options.clone() }, &output);
                let after = tensors(&output);
                assert_eq!(after.len(), before.len(), "{model}");
                let is_wide = |name: &str| wide.iter().any(|stack| name.starts_with(stack) && name.ends_with("weight"));
                assert_eq!(after.keys().filter(|name| is_wide(name)).count(), wide.len() * experts, "{model}");
                for (name, (dtype, bytes)) in &after {
                    let expected = match is_wide(name) {
                        true => (dtype::Dtype::Q8_0, wider(&exact[name].1)),
                        false => before[name].clone(),
                    };
                    assert!((*dtype, bytes) == (expected.0, &expected.1), "{model} {name}");
                }
            }
        }
    }
    std::fs::remove_dir_all(root).unwrap();
}
