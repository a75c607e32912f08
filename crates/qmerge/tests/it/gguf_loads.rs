//! Folders that become GGUF files which llama.cpp does not load, or runs otherwise, and folders whose configuration belongs to other weights. What llama.cpp does with each was tried (release b11739).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use qmerge::error::{Kind, Result};
use qmerge::inspect::not_run;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{EXPORTS, Inputs, Options, Plan};
use qmerge::progress::Silent;
use qmerge::verify::{Answer, Verification, VerifyOptions, verify};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};

use crate::written;

/// A model's tensors, all of bf16.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn place() -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("qmerge-loads-{}-{number}", std::process::id()))
}

/// A copy of a model with another configuration, or other weights.
pub(crate) fn changed(model: &str, change: impl FnOnce(&mut Value, &mut Tensors)) -> PathBuf {
    let (from, folder) = (Path::new("testdata/gguf/made").join(model), place());
    written::copy(&from, &folder);
    let (weights, config) = (folder.join("model.safetensors"), folder.join("config.json"));
    let bytes = std::fs::read(&weights).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors = stored
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec())))
        .collect();
    let mut document = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    change(&mut document, &mut tensors);
    let view = |(shape, data)| TensorView::new(Dtype::BF16, Vec::clone(shape), data).unwrap();
    let all = tensors.iter().map(|(name, (shape, data))| (name, view((shape, data.as_slice()))));
    safetensors::serialize_to_file(all, None, &weights).unwrap();
    std::fs::write(&config, document.to_string()).unwrap();
    folder
}

pub(crate) fn set(key: &'static str, value: Value) -> impl FnOnce(&mut Value, &mut Tensors) {
    move |config, _| config[key] = value
}

/// Ones of another shape.
pub(crate) fn ones(shape: &[usize]) -> (Vec<usize>, Vec<u8>) {
    (shape.to_vec(), [0x80, 0x3f].repeat(shape.iter().product()))
}

/// What is said of a file that is made of a folder, which goes with it.
pub(crate) fn warnings(folder: &Path) -> Result<Vec<String>> {
    let plan = || {
        let inputs = Inputs::new(Checkpoint::open(folder)?, Vec::new())?;
        let export = EXPORTS.iter().copied().find(|export| export.id() == "f16");
        Ok(Plan::new(&inputs, &Options { export, ..Options::default() })?.warnings)
    };
    let said = plan();
    std::fs::remove_dir_all(folder).unwrap();
    said
}

fn without_biases(_: &mut Value, tensors: &mut Tensors) {
    tensors.retain(|name, _| !(name.ends_with(".bias") || name.ends_with("_bias")));
}

fn tied(config: &mut Value, tensors: &mut Tensors) {
    config["tie_word_embeddings"] = json!(true);
    tensors.retain(|name, _| !name.starts_with("lm_head.") && !name.starts_with("embed_out."));
}

/// Gemma 3n as wide as llama.cpp has it.
fn wide(config: &mut Value, tensors: &mut Tensors) {
    config["hidden_size_per_layer_input"] = json!(256);
    config["laurel_rank"] = json!(64);
    config["num_kv_shared_layers"] = json!(0);
    let layers = config["num_hidden_layers"].as_u64().unwrap() as usize;
    for (name, tensor) in tensors.iter_mut() {
        let [rows, cols] = match tensor.0.as_slice() {
            &[rows, cols] => [rows, cols],
            _ => [tensor.0[0], 0],
        };
        match name.rsplit('.').nth(1).unwrap() {
            "embed_tokens_per_layer" => *tensor = ones(&[rows, 256 * layers]),
            "per_layer_model_projection" => *tensor = ones(&[256 * layers, cols]),
            "per_layer_projection_norm" => *tensor = ones(&[256]),
            "per_layer_input_gate" => *tensor = ones(&[256, cols]),
            "per_layer_projection" => *tensor = ones(&[rows, 256]),
            "linear_left" => *tensor = ones(&[64, cols]),
            "linear_right" => *tensor = ones(&[rows, 64]),
            _ => {}
        }
    }
}

#[test]
fn tensors_that_llama_cpp_does_not_do_without_are_told_of() {
    let without: &[(&str, &str)] = &[
        ("falcon", "output_norm.bias"),
        ("gpt2", "output_norm.bias"),
        ("gptneox", "output_norm.bias"),
        ("gptoss", "blk.0.attn_output.bias"),
        ("nemotron", "output_norm.bias"),
        ("phi", "output.bias"),
        ("phimoe", "output.bias"),
        ("stablelm", "output_norm.bias"),
        ("starcoder2", "output_norm.bias"),
    ];
    let heads =
        ["gptneox", "gptoss", "minimax_m2", "nemotron", "olmo2", "olmo3", "phi", "phimoe", "qwen2moe", "stablelm"];
    let heads = heads.map(|model| (changed(model, tied), "output.weight"));
    // Without biases transformers would refuse most of them; what counts is that the file goes as far as this.
    let all = without.iter().map(|(model, name)| (changed(model, without_biases), *name)).chain(heads);
    for (folder, name) in all {
        match warnings(&folder) {
            Ok(said) => {
                let wanted = format!("have a `{name}`");
                assert!(said.iter().any(|text| text.ends_with(&wanted)), "{folder:?} {name}: {said:?}");
            }
            Err(error) => assert!(error.to_string().contains("bias`: missing"), "{error}"),
        }
    }
    for model in ["deepseek2", "deepseek3", "exaone4", "glm4", "llama4", "mixtral", "qwen3", "seed_oss", "smollm3"] {
        assert_eq!(warnings(&changed(model, tied)).unwrap(), Vec::<String>::new(), "{model}");
    }
}

#[test]
fn figures_that_llama_cpp_has_in_its_code_are_told_of() {
    let said = |change: fn(&mut Value, &mut Tensors)| warnings(&changed("gemma3n", change)).unwrap();
    assert_eq!(said(wide), Vec::<String>::new());
    let narrow = said(|_, _| {});
    assert!(narrow[0].contains("256 for `gemma3n.embedding_length_per_layer_input`, and this one has 8"), "{narrow:?}");
    assert!(narrow[1].contains("64 for the rows of `blk.0.laurel_l.weight`, and this one has 32"), "{narrow:?}");
    assert!(narrow[2].contains("`gemma3n.attention.shared_kv_layers` is 0 for it"), "{narrow:?}");
    let others = said(|config, tensors| {
        wide(config, tensors);
        config["altup_active_idx"] = json!(1);
        config["final_logit_softcapping"] = json!(20.0);
    });
    assert_eq!(others.len(), 2, "{others:?}");
    assert!(others[0].contains("runs the model otherwise: `gemma3n.altup.active_idx` is 0"), "{others:?}");
    assert!(others[1].contains("`gemma3n.final_logit_softcapping` is 30") && others[1].ends_with("20"), "{others:?}");
    let never = said(|config, tensors| {
        wide(config, tensors);
        config["layer_types"] = json!(vec!["full_attention"; 4]);
    });
    assert!(never[0].ends_with("have a window in a layer at least, and this one has none"), "{never:?}");
    let apart = warnings(&changed("ernie4_5moe", set("moe_layer_interval", json!(2)))).unwrap();
    assert_eq!(apart, Vec::<String>::new());
    let fewer = warnings(&changed("gemma4", |config, tensors| {
        config["vocab_size_per_layer_input"] = json!(100);
        let table = tensors.get_mut("model.embed_tokens_per_layer.weight").unwrap();
        *table = ones(&[100, table.0[1]]);
    }));
    let error = fewer.unwrap_err();
    assert!(error.kind() == Kind::Unsupported && error.to_string().contains("`vocab_size_per_layer_input` is 100"));
    let experts = warnings(&changed("olmoe", |_, _| {})).unwrap();
    assert!(experts.iter().any(|text| text.contains("4 for `olmoe.attention.head_count_kv`, and this one has 2")));
}

/// What a configuration asks for is held against the weights: the tensor, its dimensions and those that are asked for are told, and the field that says so.
#[test]
fn a_configuration_of_other_weights_is_refused() {
    let cases: &[(&str, &str, Value, &[&str])] = &[
        ("llama-pieces", "num_hidden_layers", json!(9), &["everything of layer 1 is", "counts 9"]),
        ("phimoe", "num_hidden_layers", json!(1), &["model.layers.1.", "`num_hidden_layers` is 1"]),
        ("llama-pieces", "intermediate_size", json!(48), &["mlp.gate_proj.weight", "× ", "`intermediate_size` is 48"]),
        ("llama-pieces", "num_key_value_heads", json!(1), &["k_proj.weight", "wants"]),
        ("llama-pieces", "vocab_size", json!(5000), &["embed_tokens.weight", "`vocab_size` is 5000"]),
        ("qwen3", "head_dim", json!(8), &["q_proj.weight", "wants"]),
        ("gpt2", "n_inner", json!(24), &["c_fc.weight", "`n_inner` is 24"]),
        ("mixtral", "num_local_experts", json!(3), &["gate.weight", "`num_local_experts` is 3"]),
        ("qwen3moe", "moe_intermediate_size", json!(24), &["experts", "24"]),
        ("deepseek3", "kv_lora_rank", json!(24), &["kv_a", "wants"]),
        ("lfm2", "conv_L_cache", json!(5), &["conv.weight", "values"]),
        ("qwen35", "linear_num_value_heads", json!(2), &["linear_attn", "wants"]),
        ("gemma4", "hidden_size_per_layer_input", json!(4), &["per_layer", "wants"]),
        ("gpt2", "n_layer", json!(1), &["h.1.", "`n_layer` is 1"]),
        ("gptneox", "num_hidden_layers", json!(1), &["gpt_neox.layers.1.", "`num_hidden_layers` is 1"]),
        ("falcon", "num_hidden_layers", json!(1), &["transformer.h.1.", "`num_hidden_layers` is 1"]),
    ];
    for (model, field, value, told) in cases {
        let folder = changed(model, set(field, value.clone()));
        let why = not_run(&Checkpoint::open(&folder).unwrap());
        let error = warnings(&folder).expect_err(model);
        let text = error.to_string();
        assert!(told.iter().all(|part| text.contains(part)), "{model} {field}: {text}");
        assert!(text.contains(&*folder.to_string_lossy()) && error.hint().is_some(), "{text}");
        // What is there in vain can be run.
        let is_more = *value == json!(1) && ["num_hidden_layers", "n_layer"].contains(field);
        assert_eq!(why.is_some(), !is_more, "{model} {field}: {why:?}");
    }
}

/// A model that says it is not tied has a head: llama.cpp would take the embedding for it.
#[test]
fn a_head_that_is_missing_is_told_of() {
    for model in ["qwen3moe", "qwen3vlsees"] {
        let folder = changed(model, |config, tensors| {
            config["tie_word_embeddings"] = json!(false);
            if let Some(text) = config.get_mut("text_config") {
                text["tie_word_embeddings"] = json!(false);
            }
            tensors.remove("lm_head.weight");
        });
        assert!(not_run(&Checkpoint::open(&folder).unwrap()).is_some());
        let error = warnings(&folder).expect_err(model).to_string();
        assert!(error.contains("`lm_head.weight`: missing"), "{error}");
    }
}

/// Nothing is missing from a mixture of MLX, whose stacks have a name of their own.
#[test]
fn stacks_of_mlx_are_told_of() {
    let why = not_run(&Checkpoint::open("testdata/adapters-of-others/mlx/experts/base".as_ref()).unwrap()).unwrap();
    assert!(why.contains(".switch_mlp.") && why.contains("MLX's own name"), "{why}");
}

/// ERNIE's layers that predict further tokens have names of their own, and are left out as the converter does it.
#[test]
fn what_ernie_predicts_further_with_is_left_out() {
    let folder = changed("ernie4_5moe", |_, tensors| {
        for (name, shape) in [("mtp_block.0.input_layernorm", &[32][..]), ("mtp_linear_proj.0", &[32, 64])] {
            tensors.insert(format!("model.{name}.weight"), ones(shape));
        }
    });
    let said = warnings(&folder).unwrap();
    let told = said.iter().filter(|text| text.starts_with("the layers that predict further tokens are left out"));
    assert_eq!(told.count(), 1, "{said:?}");
}

/// Layers behind the counted ones predict further tokens, if they have what such layers have.
#[test]
fn layers_that_predict_further_are_no_misfit() {
    let further = |config: &mut Value, tensors: &mut Tensors| {
        config["num_nextn_predict_layers"] = json!(1);
        let own: Vec<_> = tensors.iter().filter(|(name, _)| name.starts_with("model.layers.1.")).collect();
        let copies: Vec<_> =
            own.into_iter().map(|(name, tensor)| (name.replace("layers.1", "layers.2"), tensor.clone())).collect();
        tensors.extend(copies);
        tensors.insert("model.layers.2.eh_proj.weight".into(), ones(&[32, 64]));
    };
    let said = warnings(&changed("deepseek3", further)).unwrap();
    assert!(said.len() == 1 && said[0].starts_with("the layers that predict further tokens are left out"), "{said:?}");
}

/// ggml leaves out last dimensions of one: a router of one expert is a list in a file, and a stack of one a matrix.
#[test]
fn a_mixture_of_one_expert_is_read_back() {
    let one = |field: &'static str, per_token: &'static str| {
        move |config: &mut Value, tensors: &mut Tensors| {
            config[field] = json!(1);
            config[per_token] = json!(1);
            tensors.retain(|name, _| {
                let number =
                    name.split(".experts.").nth(1).and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
                number.is_none_or(|number| number == 0)
            });
            for (name, tensor) in tensors.iter_mut() {
                let of_experts = name.contains("experts.") || name.contains("router");
                let is_stack = of_experts && !name.contains(".experts.0.") && tensor.0[0] == 4;
                if is_stack || name.ends_with("mlp.gate.weight") || name.ends_with("block_sparse_moe.gate.weight") {
                    tensor.0[0] = 1;
                    tensor.1.truncate(2 * tensor.0.iter().product::<usize>());
                }
            }
        }
    };
    for (model, field) in
        [("mixtral", "num_local_experts"), ("qwen3moe", "num_experts"), ("gptoss", "num_local_experts")]
    {
        let folder = changed(model, one(field, "num_experts_per_tok"));
        let of = |path: &Path| -> Vec<(String, Vec<usize>)> {
            let inputs = Inputs::new(Checkpoint::open(path).unwrap(), Vec::new()).unwrap();
            let weights = inputs.inventory.weights.iter().map(|claim| &claim.weight);
            let mut all: Vec<_> = weights.map(|weight| (weight.name().to_owned(), weight.shape().to_vec())).collect();
            // gpt-oss has inputs as rows in a folder.
            all.iter_mut().for_each(|(_, shape)| shape.sort_unstable());
            all.sort();
            all
        };
        for to in ["f16", "q8_0", "q4_k_m"] {
            let (inputs, file) = (Inputs::new(Checkpoint::open(&folder).unwrap(), Vec::new()).unwrap(), place());
            let export = EXPORTS.iter().copied().find(|export| export.id() == to);
            let plan = Plan::new(&inputs, &Options { export, ..Options::default() }).unwrap();
            let file = file.with_extension("gguf");
            merge::run(&inputs, &plan, None, &file, &RunOptions::default(), &Silent).unwrap();
            assert_eq!(not_run(&Checkpoint::open(&file).unwrap()), None, "{model} {to}");
            assert_eq!(of(&file), of(&folder), "{model} {to}");
            std::fs::remove_file(&file).unwrap();
            std::fs::remove_file(qmerge::write::path_beside(&file)).unwrap();
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

/// gpt-oss has inputs as rows of its experts where they are no codes, and a file outputs: both are held against each other as matrices.
#[test]
fn experts_with_inputs_as_rows_are_verified() {
    for found in verified("gptoss", "model") {
        assert_eq!(found.answer, Answer::Yes, "{}", found.text);
    }
}

/// What a file has no place for is not missing in it.
#[test]
fn what_a_file_does_not_hold_of_a_model_that_sees_is_not_missing() {
    // Experts of the last lie in stacks in the folder, and one by one in what is read of the file.
    for (model, path) in [
        ("qwen3vlsees", "model.language_model"),
        ("mistral3sees", "language_model.model"),
        ("qwen3vlmoesees", "model.language_model"),
    ] {
        for found in verified(model, path) {
            assert_eq!(found.answer, Answer::Yes, "{model}: {}", found.text);
            let told = |text: &String| text.contains("not in a GGUF file, which holds the language model alone");
            assert!(found.warnings.iter().any(told), "{:?}", found.warnings);
        }
    }
}

/// Gemma 3n's embeddings for layers have more rows in a file.
#[test]
fn zeros_behind_a_table_are_not_held_against_it() {
    for found in verified("gemma3npadded", "model") {
        assert_eq!(found.answer, Answer::Yes, "{}", found.text);
    }
    let others = |file: &Path| {
        let merged = Checkpoint::open(file).unwrap();
        let entry = merged.get("per_layer_token_embd.weight").unwrap();
        let mut bytes = std::fs::read(file).unwrap();
        let end = (entry.start + entry.bytes) as usize;
        // A block of 8 bits, or eight floats and a half.
        bytes[end - 34..end].copy_from_slice(&[0x01, 0x40].repeat(17));
        std::fs::write(file, bytes).unwrap();
    };
    for found in verified_after("gemma3npadded", "model", &["f32", "q8_0"], others) {
        assert_eq!(found.answer, Answer::No, "{}", found.text);
    }
}

/// Few bits leave more of an error in what no adapter touches, and it is the same model still.
#[test]
fn what_two_bits_leave_is_no_other_value() {
    let types = ["q2_k", "q3_k_m", "q4_k_m"];
    for found in verified_after("llama-wide", "model", &types, |_| {}) {
        assert_eq!(found.answer, Answer::Yes, "{}", found.text);
    }
    // The same codes in another order, under the same scales.
    let turned = |file: &Path| {
        let entry = Checkpoint::open(file).unwrap().get("blk.0.ffn_gate.weight").unwrap().clone();
        let mut bytes = std::fs::read(file).unwrap();
        let blocks = &mut bytes[entry.start as usize..(entry.start + entry.bytes) as usize];
        assert_eq!(blocks.len(), 64 * 84);
        blocks.chunks_exact_mut(84).for_each(|block| block[16..80].reverse());
        std::fs::write(file, bytes).unwrap();
    };
    for found in verified_after("llama-wide", "model", &types[..1], turned) {
        assert_eq!(found.answer, Answer::No, "{}", found.text);
    }
}

/// Merges an adapter of the first layer's queries into files, and holds these against the folder.
fn verified(model: &str, path: &str) -> Vec<Verification> {
    verified_after(model, path, &["f32", "q8_0"], |_| {})
}

/// The same of files of some types that were changed.
fn verified_after(model: &str, path: &str, types: &[&str], change: impl Fn(&Path)) -> Vec<Verification> {
    let (folder, adapter, file) = (changed(model, |_, _| {}), place(), place().with_extension("gguf"));
    let mut all_found = Vec::new();
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]});
    let queries = format!("{path}.layers.0.self_attn.q_proj.weight");
    let base = Checkpoint::open(&folder).unwrap();
    let &[outputs, inputs] = &base.get(&queries).unwrap().shape[..] else { panic!("{queries} is no matrix") };
    let factor = |part: &str, shape: [usize; 2]| {
        let (shape, data) = ones(&shape);
        (format!("base_model.model.{path}.layers.0.self_attn.q_proj.{part}.weight"), Dtype::BF16, shape, data)
    };
    written::adapter(&adapter, config, &[factor("lora_A", [1, inputs]), factor("lora_B", [outputs, 1])]);
    let inputs = || {
        let adapters = vec![qmerge::adapters::Adapter::open(&adapter, 1.0).unwrap()];
        Inputs::new(Checkpoint::open(&folder).unwrap(), adapters).unwrap()
    };
    for &to in types {
        let export = EXPORTS.iter().copied().find(|export| export.id() == to);
        let inputs = inputs();
        let plan = Plan::new(&inputs, &Options { export, ..Options::default() }).unwrap();
        merge::run(&inputs, &plan, None, &file, &RunOptions::default(), &Silent).unwrap();
        change(&file);
        let (merged, plan) = (Checkpoint::open(&file).unwrap(), Plan::new(&inputs, &Options::default()).unwrap());
        all_found.push(verify(&inputs, &plan, &merged, &VerifyOptions::default(), &Silent).unwrap());
        std::fs::remove_file(&file).unwrap();
        std::fs::remove_file(qmerge::write::path_beside(&file)).unwrap();
    }
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::remove_dir_all(&adapter).unwrap();
    all_found
}
