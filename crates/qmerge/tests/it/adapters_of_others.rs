//! Adapters that other programs wrote, merged, against what those programs make of them (testdata/adapters-of-others, made by scripts of testdata/gen).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::error::Result;
use qmerge::formats;
use qmerge::inspect::{AdapterInspection, Inspection, inspect};
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

type Values = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/adapters-of-others").join(name)
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let thread = format!("{:?}", std::thread::current().id());
        let path = std::env::temp_dir().join(format!("qmerge-others-{}-{thread}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The f32 tensors of a file.
fn floats(path: &Path) -> Values {
    let bytes = std::fs::read(path).unwrap();
    let value = |x: &[u8]| f32::from_le_bytes(x.try_into().unwrap());
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let plain = tensors.iter().filter(|(_, view)| view.dtype() == safetensors::Dtype::F32);
    plain
        .map(|(name, view)| {
            (name.to_owned(), (view.shape().to_vec(), view.data().chunks_exact(4).map(value).collect()))
        })
        .collect()
}

fn write(path: &Path, tensors: &Values) {
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let all: Vec<(&String, &Vec<usize>, Vec<u8>)> =
        tensors.iter().map(|(name, (shape, values))| (name, shape, bytes(values))).collect();
    let views = all.iter().map(|(name, shape, bytes)| {
        ((*name).clone(), TensorView::new(safetensors::Dtype::F32, (*shape).clone(), bytes).unwrap())
    });
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, path).unwrap();
}

/// Merges in f32, and gives what the output holds.
fn merged(base: &Path, adapter: &Path, weight: f64) -> Result<Values> {
    let out = Scratch::new("out");
    let inputs = Inputs::new(Checkpoint::open(base)?, vec![Adapter::open(adapter, weight)?])?;
    let plan = Plan::new(&inputs, &Options { to: Some(formats::by_id("f32").unwrap()), ..Options::default() })?;
    let report = merge::run(&inputs, &plan, None, &out.join("merged"), &RunOptions::default(), &Silent)?;
    assert!(report.adapters[0].unused == 0);
    let mut found = Values::new();
    for item in std::fs::read_dir(out.join("merged")).unwrap() {
        let path = item.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            found.extend(floats(&path));
        }
    }
    Ok(found)
}

/// Holds the merge to the values that another program found, to a share of the largest of each tensor.
fn agrees(got: &Values, want: &Values, tolerance: f32, context: &str) {
    assert!(!want.is_empty(), "{context}");
    for (name, (shape, want)) in want {
        let (have_shape, have) = got.get(name).unwrap_or_else(|| panic!("{context}: no {name}"));
        assert_eq!(have_shape, shape, "{context}: {name}");
        let largest = want.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let worst = crate::largest(have.iter().zip(want).map(|(a, b)| (a - b).abs()));
        assert!(worst <= tolerance * largest, "{context}: {name} is off by {worst} of {largest}");
    }
}

fn inspected(path: &Path) -> AdapterInspection {
    match inspect(path).unwrap() {
        Inspection::Adapter(adapter) => adapter,
        other => panic!("{other:?}"),
    }
}

/// What is said of an adapter that cannot be merged has all these words.
fn refused(base: &Path, adapter: &Path, words: &[&str]) {
    let error = merged(base, adapter, 1.0).map(|_| ()).expect_err("it was merged");
    let text = format!("{error:?}");
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in {text}");
    }
}

/// A copy of a case's adapter with other tensors or another configuration.
fn changed(case: &str, change: impl Fn(&mut Values, &mut Value)) -> Scratch {
    let scratch = Scratch::new("changed");
    let mut tensors = floats(&data(case).join("adapter/adapters.safetensors"));
    let text = std::fs::read_to_string(data(case).join("adapter/adapter_config.json")).unwrap();
    let mut config = serde_json::from_str(&text).unwrap();
    change(&mut tensors, &mut config);
    write(&scratch.join("adapters.safetensors"), &tensors);
    if !config.is_null() {
        std::fs::write(scratch.join("adapter_config.json"), config.to_string()).unwrap();
    }
    scratch
}

#[test]
fn mlx_adapters_are_merged_as_mlx_fuses_them() {
    // mlx-lm rounds the delta, and where the base is bf16 the sum too.
    for (case, tolerance) in [
        ("lora", 1e-6),
        ("lora-4bit", 1.0 / 128.0),
        ("embedding", 1e-6),
        ("dora", 2e-6),
        ("full", 0.0),
        ("experts", 1e-6),
        ("experts-4bit", 1e-6),
    ] {
        let folder = data("mlx").join(case);
        let want = floats(&folder.join("fused.safetensors"));
        let before = floats(&folder.join("base/model.safetensors"));
        for adapter in ["adapter", "adapter/adapters.safetensors"] {
            let got = merged(&folder.join("base"), &folder.join(adapter), 1.0).unwrap();
            agrees(&got, &want, tolerance, case);
            for (name, values) in before.iter().filter(|(name, _)| !want.contains_key(*name)) {
                assert!(got.get(name).is_none_or(|got| got == values), "{case}: {name} changed");
            }
        }
    }
}

#[test]
fn half_of_an_mlx_adapter_is_half_of_its_change() {
    let folder = data("mlx/lora");
    let base = floats(&folder.join("base/model.safetensors"));
    let mut want = floats(&folder.join("fused.safetensors"));
    for (name, (_, values)) in &mut want {
        values.iter_mut().zip(&base[name].1).for_each(|(new, old)| *new = (*new + old) / 2.0);
    }
    agrees(&merged(&folder.join("base"), &folder.join("adapter"), 0.5).unwrap(), &want, 1e-6, "half");
    let full = data("mlx/full");
    let error = merged(&full.join("base"), &full.join("adapter"), 0.5).unwrap_err().to_string();
    assert!(error.contains("the weight 0.5 has no meaning"), "{error}");
}

/// The hub's checkpoint of a mixture has a tensor per expert where MLX has a stack.
#[test]
fn an_mlx_adapter_of_experts_goes_onto_single_experts() {
    let scratch = Scratch::new("single");
    let folder = data("mlx/experts");
    let single = |tensors: &Values| -> Values {
        let mut found = Values::new();
        for (name, (shape, values)) in tensors {
            let Some((before, after)) = name.split_once(".switch_mlp.") else {
                found.insert(name.clone(), (shape.clone(), values.clone()));
                continue;
            };
            for (expert, values) in values.chunks_exact(shape[1] * shape[2]).enumerate() {
                found.insert(format!("{before}.experts.{expert}.{after}"), (shape[1..].to_vec(), values.to_vec()));
            }
        }
        found
    };
    write(&scratch.join("base/model.safetensors"), &single(&floats(&folder.join("base/model.safetensors"))));
    std::fs::copy(folder.join("base/config.json"), scratch.join("base/config.json")).unwrap();
    let got = merged(&scratch.join("base"), &folder.join("adapter"), 1.0).unwrap();
    agrees(&got, &single(&floats(&folder.join("fused.safetensors"))), 1e-6, "single experts");
}

#[test]
fn an_inspection_says_who_wrote_it() {
    let found = inspected(&data("mlx/lora/adapter"));
    assert_eq!((found.writer.as_str(), found.peft_type.as_str(), found.r), ("MLX", "LORA", Some(4)));
    assert_eq!(found.base_model.as_deref(), Some("someone/tiny"));
    assert!((found.lora_alpha.unwrap() - 4.0 * 3.7).abs() < 1e-6);
    assert_eq!(found.targets.iter().map(|target| target.count).sum::<usize>(), 14);
    assert!(found.targets.iter().any(|target| target.module == "q_proj" && target.shapes == [[4, 32]]));
    let found = inspected(&data("mlx/dora/adapter/adapters.safetensors"));
    assert_eq!((found.writer.as_str(), found.variants.as_slice()), ("MLX", &["dora".to_owned()][..]));
    let found = inspected(&data("mlx/full/adapter"));
    assert_eq!((found.peft_type.as_str(), found.r, found.tensors), ("FULL", None, 9));
}

#[test]
fn mlx_adapters_that_are_wrong_are_named() {
    const A: &str = "model.layers.0.mlp.down_proj.lora_a";
    let base = data("mlx/lora/base");
    let refused_after = |words: &[&str], change: &dyn Fn(&mut Values, &mut Value)| {
        refused(&base, &changed("mlx/lora", change).0, words);
    };
    refused_after(&["adapter_config.json", "the scale is unknown"], &|_, config| *config = Value::Null);
    refused_after(&["adapter_config.json", "no `scale`"], &|_, config| config["lora_parameters"] = json!({"rank": 4}));
    refused_after(&["adapter_config.json", "no `lora_parameters`"], &|_, config| {
        *config = json!({"peft_type": "LORA"})
    });
    refused_after(&["`fine_tune_type` is \"ia3\""], &|_, config| config["fine_tune_type"] = json!("ia3"));
    refused_after(&["both `scale` and `alpha`", "early"], &|_, config| config["lora_parameters"]["alpha"] = json!(16));
    refused_after(&["use_dora", "no magnitude"], &|_, config| config["fine_tune_type"] = json!("dora"));
    refused_after(&[A, "partner", "missing"], &|tensors, _| {
        tensors.remove("model.layers.0.mlp.down_proj.lora_b");
    });
    refused_after(&["the other factor of `model.layers.0.mlp.down_proj`"], &|tensors, _| {
        tensors.insert(A.into(), (vec![64, 5], vec![0.0; 320]));
    });
    refused_after(&["no rank"], &|tensors, _| {
        tensors.retain(|name, _| name.contains("layers.0.mlp.down_proj"));
        tensors.insert(A.into(), (vec![64, 0], vec![]));
        tensors.insert(A.replace("_a", "_b"), (vec![0, 32], vec![]));
    });
    refused_after(&[A, "expected a matrix"], &|tensors, _| {
        tensors.get_mut(A).unwrap().0 = vec![256];
    });
    refused_after(&["down_proj", "[32, 32]"], &|tensors, _| {
        tensors.insert(A.into(), (vec![32, 4], vec![0.5; 128]));
    });
    refused_after(&[A, "NaN"], &|tensors, _| tensors.get_mut(A).unwrap().1[3] = f32::NAN);
    refused_after(&["model.layers.7.mlp", "matches nothing"], &|tensors, _| {
        for end in ["_a", "_b"] {
            let name = A.replace("_a", end);
            let tensor = tensors[&name].clone();
            tensors.insert(name.replace("layers.0", "layers.7"), tensor);
        }
    });
    refused_after(&["model.extra.weight", "matches nothing"], &|tensors, _| {
        tensors.insert("model.extra.weight".into(), (vec![2], vec![1.0; 2]));
    });
    // A DoRA's magnitudes of an embedding are of another kind.
    let embedding = changed("mlx/embedding", |_, config| config["fine_tune_type"] = json!("dora"));
    refused(&data("mlx/embedding/base"), &embedding.0, &["embed_tokens", "DoRA of an embedding"]);
}

/// A GGUF file with these keys and f32 tensors.
fn gguf(path: &Path, keys: &[Vec<u8>], tensors: &Values) {
    let mut bytes = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((keys.len() as u64).to_le_bytes());
    bytes.extend(keys.concat());
    let (mut data, mut offset) = (Vec::new(), 0_u64);
    for (name, (shape, values)) in tensors {
        bytes.extend(text(name));
        bytes.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|size| bytes.extend((*size as u64).to_le_bytes()));
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        values.iter().for_each(|x| data.extend(x.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
        offset = data.len() as u64;
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    std::fs::write(path, [bytes, data].concat()).unwrap();
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn string(key: &str, value: &str) -> Vec<u8> {
    [text(key), 8_u32.to_le_bytes().to_vec(), text(value)].concat()
}

fn float(key: &str, value: f32) -> Vec<u8> {
    [text(key), 6_u32.to_le_bytes().to_vec(), value.to_le_bytes().to_vec()].concat()
}

/// A llama whose embedding and keys the adapters of the test data fit.
fn llama(folder: &Path, model_type: &str) {
    let values = |n: usize| (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 500.0).collect::<Vec<f32>>();
    let tensors = Values::from([
        ("model.embed_tokens.weight".to_owned(), (vec![64, 256], values(64 * 256))),
        ("model.layers.0.self_attn.k_proj.weight".to_owned(), (vec![128, 256], values(128 * 256))),
    ]);
    write(&folder.join("model.safetensors"), &tensors);
    let config = json!({"model_type": model_type, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// The PEFT adapter and what llama.cpp's converter made of it mean the same, of a folder and of a GGUF file: to the bit.
#[test]
fn gguf_adapters_are_what_they_were_made_from() {
    let scratch = Scratch::new("gguf");
    llama(&scratch.join("base"), "llama");
    let adapter = |name: &str| data("gguf").join(name);
    let got = merged(&scratch.join("base"), &adapter("adapter-f32.gguf"), 0.75).unwrap();
    let want = merged(&scratch.join("base"), &adapter("adapter_model.safetensors"), 0.75).unwrap();
    // The head parts from the embedding.
    assert_eq!(want.len(), 3);
    assert!(got == want);
    let before = floats(&scratch.join("base/model.safetensors"));
    assert!(before.iter().all(|(name, values)| name == "model.embed_tokens.weight" || want[name] != *values));
    let into_file = |adapter: &Path, out: &str| {
        let base = Checkpoint::open(&data("gguf/base_q4k.gguf")).unwrap();
        let inputs = Inputs::new(base, vec![Adapter::open(adapter, 1.0).unwrap()]).unwrap();
        let plan = Plan::new(&inputs, &Options::default()).unwrap();
        merge::run(&inputs, &plan, None, &scratch.join(out), &RunOptions::default(), &Silent).unwrap();
        std::fs::read(scratch.join(out)).unwrap()
    };
    let got = into_file(&adapter("adapter-f32.gguf"), "a.gguf");
    assert!(got == into_file(&adapter("adapter_model.safetensors"), "b.gguf"));
    assert!(got != std::fs::read(data("gguf/base_q4k.gguf")).unwrap());
    let found = inspected(&adapter("adapter-f32.gguf"));
    assert_eq!((found.writer.as_str(), found.r, found.lora_alpha), ("llama.cpp", Some(4), Some(6.0)));
    let targets: Vec<&str> = found.targets.iter().map(|target| target.module.as_str()).collect();
    assert_eq!(targets, ["embed_tokens", "k_proj"]);
}

#[test]
fn gguf_adapters_that_are_wrong_are_named() {
    let scratch = Scratch::new("wrong-gguf");
    llama(&scratch.join("base"), "llama");
    let path = scratch.join("adapter.gguf");
    let keys = || {
        vec![
            string("general.architecture", "llama"),
            string("general.type", "adapter"),
            string("adapter.type", "lora"),
            float("adapter.lora.alpha", 0.0),
        ]
    };
    let pair = |name: &str, a: [usize; 2], b: [usize; 2]| {
        let values = |n: usize| (0..n).map(|i| (i % 7) as f32 / 8.0).collect::<Vec<f32>>();
        Values::from([
            (format!("{name}.weight.lora_a"), (a.to_vec(), values(a[0] * a[1]))),
            (format!("{name}.weight.lora_b"), (b.to_vec(), values(b[0] * b[1]))),
        ])
    };
    let good = || pair("blk.0.attn_k", [2, 256], [128, 2]);
    let base = scratch.join("base");
    // Without alpha the product counts as it is.
    gguf(&path, &keys(), &good());
    let one = merged(&base, &path, 1.0).unwrap();
    gguf(&path, &keys()[..3], &good());
    assert!(one == merged(&base, &path, 1.0).unwrap());
    let alpha = |alpha| [&keys()[..3], &[float("adapter.lora.alpha", alpha)]].concat();
    gguf(&path, &alpha(2.0), &good());
    assert!(one == merged(&base, &path, 1.0).unwrap(), "alpha / rank is 1");
    gguf(&path, &alpha(f32::NAN), &good());
    refused(&base, &path, &["adapter.gguf", "no finite float"]);
    let refused_with = |keys: &[Vec<u8>], tensors: &Values, words: &[&str]| {
        gguf(&path, keys, tensors);
        refused(&base, &path, &[words, &["adapter.gguf"]].concat());
    };
    let with = |at: usize, key: Vec<u8>| {
        let mut keys = keys();
        keys[at] = key;
        keys
    };
    refused_with(&with(2, string("adapter.type", "control")), &good(), &["type `control`", "PEFT folder"]);
    refused_with(&with(2, string("x", "y")), &good(), &["adapter.type"]);
    refused_with(&with(3, string("adapter.lora.alpha", "y")), &good(), &["no finite float"]);
    refused_with(
        &with(0, string("general.architecture", "falcon")),
        &good(),
        &["architecture `falcon`", "PEFT folder"],
    );
    refused_with(
        &with(0, string("general.architecture", "qwen2")),
        &good(),
        &["architecture `qwen2` (qwen2)", "of the type `llama`"],
    );
    refused_with(&with(1, string("general.type", "model")), &good(), &["not an adapter"]);
    let tokens = [
        text("adapter.alora.invocation_tokens"),
        9_u32.to_le_bytes().to_vec(),
        4_u32.to_le_bytes().to_vec(),
        1_u64.to_le_bytes().to_vec(),
        5_u32.to_le_bytes().to_vec(),
    ]
    .concat();
    refused_with(&with(3, tokens), &good(), &["aLoRA"]);
    refused_with(
        &keys(),
        &pair("blk.0.ffn_gate_exps", [2, 256], [128, 2]),
        &["blk.0.ffn_gate_exps.weight", "no model"],
    );
    refused_with(&keys(), &pair("blk.0.attn_k", [3, 256], [128, 2]), &["the other factor"]);
    refused_with(&keys(), &pair("blk.0.attn_k", [2, 256], [130, 2]), &["[130, 256]"]);
    refused_with(&keys(), &pair("blk.0.attn_k", [0, 256], [128, 0]), &["no rank"]);
    refused_with(&keys(), &pair("blk.1.attn_k", [2, 256], [128, 2]), &["matches nothing"]);
    let mut half = good();
    half.remove("blk.0.attn_k.weight.lora_b");
    refused_with(&keys(), &half, &["partner", "missing"]);
    // What llama.cpp passes over.
    let mut norm = good();
    norm.insert("blk.0.attn_norm.weight".into(), (vec![256], vec![1.0; 256]));
    gguf(&path, &keys(), &norm);
    assert!(one == merged(&base, &path, 1.0).unwrap());
    // The order of rows goes by heads, of which the base must tell.
    std::fs::write(base.join("config.json"), r#"{"model_type": "llama"}"#).unwrap();
    refused(&base, &path, &["how many heads", "attn_k"]);
    std::fs::write(base.join("config.json"), r#"{"model_type": "llama", "num_attention_heads": 128}"#).unwrap();
    refused(&base, &path, &["not 128 heads of pairs of rows", "attn_k"]);
}

/// A part of a diffusion pipeline, with what another program made of an adapter there.
fn of_pipeline(pipeline: &str, adapter: &str, part: &str, tolerance: f32) {
    let folder = data("diffusion").join(pipeline);
    let file = folder.join(format!("{adapter}.safetensors"));
    let got = merged(&folder.join(part), &file, 1.0).unwrap();
    let want = floats(&folder.join(format!("{adapter}.{part}.safetensors")));
    agrees(&got, &want, tolerance, &format!("{pipeline} {adapter} {part}"));
    let before = std::fs::read_dir(folder.join(part)).unwrap().map(|item| item.unwrap().path());
    let before = before.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    for (name, values) in before.flat_map(|path| floats(&path)) {
        assert!(want.contains_key(&name) || got[&name] == values, "{adapter}: {name} changed");
    }
}

#[test]
fn adapters_of_diffusion_models_are_merged_as_diffusers_fuses_them() {
    for (pipeline, adapter, parts) in [
        ("sd", "kohya", &["unet", "text_encoder"][..]),
        ("sd", "kohya-conv", &["unet"]),
        ("sd", "diffusers", &["unet", "text_encoder"]),
        ("sd", "diffusers-old", &["unet", "text_encoder"]),
        ("sdxl", "kohya", &["unet", "text_encoder", "text_encoder_2"]),
        // What was one matrix where the model was published lies in pieces.
        ("flux", "kohya", &["transformer"]),
    ] {
        parts.iter().for_each(|part| of_pipeline(pipeline, adapter, part, 2e-6));
    }
}

#[test]
fn adapters_of_lycoris_are_merged_as_it_merges_them() {
    for adapter in [
        "locon",
        "locon-tucker",
        "locon-dora",
        "loha",
        "loha-conv",
        "loha-tucker",
        "lokr",
        "lokr-full",
        "lokr-low",
        "lokr-conv",
        "lokr-tucker",
        "full",
    ] {
        of_pipeline("sd", adapter, "unet", 2e-6);
    }
}

/// A matrix whose outputs lie in several modules of the base has to be as large as they are together.
#[test]
fn pieces_that_do_not_fit_are_named() {
    let scratch = Scratch::new("flux");
    let folder = data("diffusion/flux");
    let file = scratch.join("style.safetensors");
    let mut tensors = floats(&folder.join("kohya.safetensors"));
    let up = tensors.get_mut("lora_unet_single_blocks_1_linear1.lora_up.weight").unwrap();
    *up = (vec![96, 2], vec![0.0; 192]);
    write(&file, &tensors);
    refused(&folder.join("transformer"), &file, &["single_blocks_1_linear1", "[96, 16]", "[112, 16]"]);
    // Halves of this one change places, which is nothing that this version knows.
    let mut tensors = floats(&folder.join("kohya.safetensors"));
    let added = tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].clone();
    tensors.insert("lora_unet_final_layer_adaLN_modulation_1.lora_down.weight".into(), added);
    tensors.insert("lora_unet_final_layer_adaLN_modulation_1.lora_up.weight".into(), (vec![32, 2], vec![0.0; 64]));
    write(&file, &tensors);
    refused(&folder.join("transformer"), &file, &["final_layer_adaLN_modulation_1", "matches nothing"]);
}

/// What is added whole may stand beside factors of any method, and takes an adapter's weight.
#[test]
fn factors_and_additions_in_one_file_are_summed() {
    const Q: &str = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight";
    const CONVOLUTION: &str = "mid_block.resnets.0.conv1.weight";
    const FLAT: &str = "lora_unet_mid_block_resnets_0_conv1";
    let scratch = Scratch::new("mixed");
    let folder = data("diffusion/sd");
    let base = floats(&folder.join("unet/diffusion_pytorch_model.safetensors"));
    let shape = base[CONVOLUTION].0.clone();
    let ramp = |shape: &[usize], step: f32| -> (Vec<usize>, Vec<f32>) {
        (shape.to_vec(), (0..shape.iter().product()).map(|at: usize| at as f32 * step).collect())
    };
    let mut own = floats(&folder.join("kohya.safetensors"));
    for (end, shape) in [("down", [&[2][..], &shape[1..]].concat()), ("up", vec![shape[0], 2, 1, 1])] {
        own.insert(format!("{FLAT}.lora_{end}.weight"), ramp(&shape, 1e-3));
    }
    let (factors, full) = (scratch.join("factors.safetensors"), folder.join("full.safetensors"));
    write(&factors, &own);
    let mut both = own;
    // A file has one prefix for a part.
    both.extend(floats(&full).into_iter().map(|(name, tensor)| (name.replace("lycoris_", "lora_unet_"), tensor)));
    let added = ramp(&shape, 1e-3);
    both.insert(format!("{FLAT}.diff"), added.clone());
    let file = scratch.join("both.safetensors");
    write(&file, &both);
    let merge = |file: &Path, weight| merged(&folder.join("unet"), file, weight).unwrap();
    let (one, other, sum) = (merge(&factors, 1.0), merge(&full, 0.5), merge(&file, 0.5));
    let parts = one[Q].1.iter().zip(&other[Q].1).zip(&base[Q].1);
    for (got, ((one, other), base)) in sum[Q].1.iter().zip(parts) {
        let want = base + (one - base) / 2.0 + (other - base);
        assert!((got - want).abs() < 1e-6 && other != base, "{got} {want}");
    }
    let parts = one[CONVOLUTION].1.iter().zip(&base[CONVOLUTION].1).zip(&added.1);
    for (got, ((one, base), added)) in sum[CONVOLUTION].1.iter().zip(parts) {
        let want = base + (one - base) / 2.0 + added / 2.0;
        assert!((got - want).abs() < 1e-6 * want.abs().max(1.0), "{got} {want}");
    }
    assert!(one[CONVOLUTION].1 != base[CONVOLUTION].1);
}

/// The same weights under the names of the file in which SDXL was published.
#[test]
fn a_checkpoint_in_one_file_takes_adapters_by_its_own_names() {
    let scratch = Scratch::new("single-file");
    let file = data("diffusion/sdxl/kohya.safetensors");
    let mut base = Values::new();
    for (name, (shape, _)) in floats(&file) {
        let Some(flat) = name.strip_prefix("lora_unet_").and_then(|name| name.strip_suffix(".lora_up.weight")) else {
            continue;
        };
        let rows = shape[0];
        let down = &floats(&file)[&format!("lora_unet_{flat}.lora_down.weight")].0;
        let shape = [&[rows], &down[1..]].concat();
        let path = dotted(flat);
        let n = shape.iter().product::<usize>();
        base.insert(format!("model.diffusion_model.{path}.weight"), (shape, vec![0.0; n]));
    }
    assert_eq!(base.len(), 56);
    write(&scratch.join("sdxl.safetensors"), &base);
    let got = merged(&scratch.join("sdxl.safetensors"), &file, 1.0).unwrap();
    // What is added to zeros is what diffusers added to its folder.
    let fused = floats(&data("diffusion/sdxl/kohya.unet.safetensors"));
    let before = floats(&data("diffusion/sdxl/unet/diffusion_pytorch_model.safetensors"));
    let pair = [
        (
            "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        ("middle_block.0.in_layers.2", "mid_block.resnets.0.conv1"),
        ("output_blocks.3.0.skip_connection", "up_blocks.1.resnets.0.conv_shortcut"),
    ];
    for (own, other) in pair {
        let (fused, before) = (&fused[&format!("{other}.weight")].1, &before[&format!("{other}.weight")].1);
        let delta = &got[&format!("model.diffusion_model.{own}.weight")].1;
        let worst = crate::largest(delta.iter().zip(fused.iter().zip(before)).map(|(d, (a, b))| (d - (a - b)).abs()));
        assert!(worst < 1e-6 && delta.iter().any(|x| x.abs() > 1e-3), "{own}: {worst}");
    }
}

/// `input_blocks_4_1_x_y` with dots where this file's names have them.
fn dotted(flat: &str) -> String {
    let mut path = flat.to_owned();
    for word in [
        "input_blocks",
        "output_blocks",
        "middle_block",
        "transformer_blocks",
        "proj_in",
        "in_layers",
        "skip_connection",
        "to_q",
        "to_v",
        "to_out",
    ] {
        path = path.replace(word, &word.replace('_', "-"));
    }
    path.replace('_', ".").replace('-', "_")
}

#[test]
fn an_inspection_knows_adapters_of_diffusion_models() {
    let found = inspected(&data("diffusion/sd/kohya.safetensors"));
    assert_eq!((found.writer.as_str(), found.peft_type.as_str()), ("kohya's sd-scripts or LyCORIS", "LORA"));
    assert_eq!((found.r, found.lora_alpha), (Some(4), Some(2.0)));
    let found = inspected(&data("diffusion/sd/lokr-low.safetensors"));
    assert_eq!((found.peft_type.as_str(), found.r), ("LOKR", Some(2)));
    // Ranks differ.
    let found = inspected(&data("diffusion/sd/diffusers.safetensors"));
    assert_eq!((found.writer.as_str(), found.r, found.lora_alpha), ("diffusers", None, None));
}

#[test]
fn adapters_of_diffusion_models_that_are_wrong_are_named() {
    const Q: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
    let scratch = Scratch::new("wrong-kohya");
    let unet = data("diffusion/sd/unet");
    let file = scratch.join("style.safetensors");
    let tensors = floats(&data("diffusion/sd/kohya.safetensors"));
    let refused_after = |words: &[&str], change: &dyn Fn(&mut Values)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        write(&file, &tensors);
        refused(&unet, &file, words);
    };
    let renamed = |tensors: &mut Values, from: &str, to: &str| {
        for end in ["lora_down.weight", "lora_up.weight", "alpha"] {
            let tensor = tensors.remove(&format!("{from}.{end}")).unwrap();
            tensors.insert(format!("{to}.{end}"), tensor);
        }
    };
    refused_after(&["lora_unet_mid_block_other", "matches nothing"], &|tensors| {
        renamed(tensors, Q, "lora_unet_mid_block_other")
    });
    refused_after(&[Q, "`oft_blocks`", "program that trained it"], &|tensors| {
        tensors.insert(format!("{Q}.oft_blocks"), (vec![16, 16], vec![0.0; 256]));
    });
    refused_after(&[Q, "diff", "shape [16, 8]", "another base"], &|tensors| {
        tensors.insert(format!("{Q}.diff"), (vec![16, 8], vec![0.0; 128]));
    });
    refused_after(&[Q, "diff_b", "matches nothing"], &|tensors| {
        tensors.insert(format!("{Q}.diff_b"), (vec![16], vec![0.0; 16]));
    });
    refused_after(&[Q, "diff", "inf"], &|tensors| {
        tensors.insert(format!("{Q}.diff"), (vec![16, 16], vec![f32::INFINITY; 256]));
    });
    refused_after(&["a tensor of LOHA", "one of LORA"], &|tensors| {
        tensors.insert("lora_unet_x.hada_w1_a".into(), (vec![2, 2], vec![0.0; 4]));
    });
    refused_after(&[Q, "alpha of 0"], &|tensors| tensors.get_mut(&format!("{Q}.alpha")).unwrap().1[0] = 0.0);
    refused_after(&[Q, "expected one number"], &|tensors| {
        tensors.insert(format!("{Q}.alpha"), (vec![2], vec![1.0; 2]));
    });
    refused_after(&[Q, "NaN"], &|tensors| tensors.get_mut(&format!("{Q}.alpha")).unwrap().1[0] = f32::NAN);
    refused_after(&["partner", "missing"], &|tensors| {
        tensors.remove(&format!("{Q}.lora_up.weight"));
    });
    refused_after(&["magnitudes of inputs", "dora_scale"], &|tensors| {
        tensors.insert(format!("{Q}.dora_scale"), (vec![1, 16], vec![1.0; 16]));
    });
    refused_after(&["a kernel between 4 and 4 channels"], &|tensors| {
        tensors.insert(format!("{Q}.lora_mid.weight"), (vec![3, 4, 3, 3], vec![1.0; 108]));
    });
    refused_after(&["alphas alone"], &|tensors| tensors.retain(|name, _| name.ends_with(".alpha")));
    refused_after(&["none of its tensors is for this part"], &|tensors| {
        tensors.retain(|name, _| name.starts_with("lora_te_"))
    });
    // A base that is no part of a pipeline, and a text encoder of which the folder does not say which it is.
    write(&file, &tensors);
    refused(&data("mlx/lora/base"), &file, &["no part of one", "diffusers pipeline"]);
    std::fs::create_dir(scratch.join("encoder")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(data("diffusion/sd/text_encoder").join(name), scratch.join("encoder").join(name)).unwrap();
    }
    refused(&scratch.join("encoder"), &file, &["does not say which", "text_encoder_2"]);
    // Several in a folder.
    write(&scratch.join("two/a.safetensors"), &tensors);
    write(&scratch.join("two/b.safetensors"), &tensors);
    refused(&unet, &scratch.join("two"), &["several adapters: a.safetensors, b.safetensors"]);
    std::fs::remove_file(scratch.join("two/b.safetensors")).unwrap();
    assert!(merged(&unet, &scratch.join("two"), 1.0).is_ok());
    // Names with underscores that stand for two modules.
    let mut base = floats(&unet.join("diffusion_pytorch_model.safetensors"));
    let name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight";
    let tensor = base[name].clone();
    base.insert(name.replace("attn1.to_q", "attn1_to.q"), tensor);
    write(&scratch.join("unet/x.safetensors"), &base);
    std::fs::copy(unet.join("config.json"), scratch.join("unet/config.json")).unwrap();
    refused(&scratch.join("unet"), &file, &["could be", "attn1_to.q"]);
}

#[test]
fn what_diffusers_says_of_scaling_is_held_to() {
    let scratch = Scratch::new("metadata");
    let unet = data("diffusion/sd/unet");
    let file = scratch.join("pytorch_lora_weights.safetensors");
    let tensors = floats(&data("diffusion/sd/diffusers.safetensors"));
    let with = |metadata: &str| {
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let all: Vec<_> = tensors.iter().map(|(name, (shape, values))| (name, shape, bytes(values))).collect();
        let views = all.iter().map(|(name, shape, bytes)| {
            ((*name).clone(), TensorView::new(safetensors::Dtype::F32, (*shape).clone(), bytes).unwrap())
        });
        let metadata = [("lora_adapter_metadata".to_owned(), metadata.to_owned())].into();
        safetensors::serialize_to_file(views.collect::<Vec<_>>(), Some(metadata), &file).unwrap();
    };
    for (metadata, words) in [
        ("{", "not a JSON object"),
        (r#"{"unet.r": 8, "unet.lora_alpha": 8}"#, "the metadata says rank 8"),
        (r#"{"unet.r": "x"}"#, "`r` is \"x\", expected a number"),
        (r#"{"unet.alora_invocation_tokens": [1]}"#, "aLoRA"),
    ] {
        with(metadata);
        refused(&unet, &scratch.0, &[words, "pytorch_lora_weights.safetensors"]);
    }
    with(r#"{"other": 3}"#);
    assert!(merged(&unet, &scratch.0, 1.0).is_ok());
}

#[test]
fn tinker_adapters_are_merged_as_its_cookbook_merges_them() {
    let folder = data("tinker");
    let got = merged(&folder.join("base"), &folder.join("adapter"), 1.0).unwrap();
    let want = floats(&folder.join("merged.safetensors"));
    assert_eq!(want.len(), 11);
    agrees(&got, &want, 1e-6, "tinker");
    let found = inspected(&folder.join("adapter"));
    assert_eq!((found.writer.as_str(), found.r, found.lora_alpha), ("Tinker", Some(4), Some(10.0)));
    assert_eq!(found.base_model.as_deref(), Some("someone/tiny-moe"));
}

#[test]
fn tinker_adapters_that_are_wrong_are_named() {
    const W1: &str = "base_model.model.model.layers.0.mlp.experts.w1.lora_B.weight";
    let scratch = Scratch::new("wrong-tinker");
    let base = data("tinker/base");
    let tensors = floats(&data("tinker/adapter/adapter_model.safetensors"));
    let text = std::fs::read_to_string(data("tinker/adapter/adapter_config.json")).unwrap();
    let try_with = |config: &str, change: &dyn Fn(&mut Values)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        write(&scratch.join("adapter_model.safetensors"), &tensors);
        std::fs::write(scratch.join("adapter_config.json"), config).unwrap();
    };
    for (config, words) in [
        ("{}", "no `r`"),
        (r#"{"r": 0, "lora_alpha": 1}"#, "no `r`"),
        (r#"{"r": 4, "lora_alpha": "x"}"#, "expected a number"),
    ] {
        try_with(config, &|_| ());
        refused(&base, &scratch.0, &["adapter_config.json", words]);
    }
    try_with(&text, &|tensors| {
        tensors.insert(W1.into(), (vec![2, 16, 4], vec![0.1; 128]));
    });
    refused(&base, &scratch.0, &["3 experts of rank 4"]);
    try_with(&text, &|tensors| {
        tensors.insert(W1.replace("w1", "w3"), (vec![2, 16, 4], vec![0.1; 128]));
    });
    refused(&base, &scratch.0, &["2 matrices, but the other factor has 3"]);
    try_with(&text, &|tensors| {
        tensors.insert(W1.into(), (vec![3, 16, 5], vec![0.1; 240]));
    });
    refused(&base, &scratch.0, &["the other factor"]);
    try_with(&text, &|tensors| {
        tensors.insert(W1.into(), (vec![48, 4], vec![0.1; 192]));
    });
    refused(&base, &scratch.0, &["experts.w1", "a stack of them for experts"]);
    // A projection that the experts do not have is empty.
    try_with(&text, &|tensors| {
        for end in ["A", "B"] {
            tensors.insert(W1.replace("lora_B", &format!("lora_{end}")), (vec![3, 0, 4], vec![]));
        }
    });
    assert!(merged(&base, &scratch.0, 1.0).is_ok());
}
