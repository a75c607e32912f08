//! Adapters of PEFT's methods that are wrong somewhere: every error names the file, the tensor or field, and what to do.

use std::path::{Path, PathBuf};

use qmerge::adapters::{ADAPTERS, Adapter};
use qmerge::error::Result;
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use crate::written::{self, Tensor};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/peft-methods")
}

/// An adapter of the test data, to be changed and planned against its base.
struct Case {
    name: String,
    tensors: Vec<Tensor>,
    config: Map<String, Value>,
}

impl Case {
    fn new(name: &str) -> Self {
        let adapter = data().join(name).join("adapter");
        let bytes = std::fs::read(adapter.join("adapter_model.safetensors")).unwrap();
        let own =
            |(name, view): (String, TensorView<'_>)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec());
        let mut tensors: Vec<Tensor> =
            SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter().map(own).collect();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let config = std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
        Self { name: name.to_owned(), tensors, config: serde_json::from_str(&config).unwrap() }
    }

    fn plan(&self, weight: f64) -> Result<()> {
        let base = std::fs::read_to_string(data().join(&self.name).join("base.txt")).unwrap();
        self.plan_onto(&data().join("bases").join(base.trim()), weight)
    }

    /// The same, the base being of another family as its configuration says.
    fn plan_with(&self, model_type: &str, weight: f64) -> Result<()> {
        let own = std::fs::read_to_string(data().join(&self.name).join("base.txt")).unwrap();
        let own = data().join("bases").join(own.trim());
        let folder = std::env::temp_dir().join(format!("qmerge-hostile-base-{}-{model_type}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(own.join("model.safetensors"), folder.join("model.safetensors")).unwrap();
        let config = std::fs::read_to_string(own.join("config.json")).unwrap();
        let mut config: Map<String, Value> = serde_json::from_str(&config).unwrap();
        config.insert("model_type".into(), json!(model_type));
        std::fs::write(folder.join("config.json"), Value::Object(config).to_string()).unwrap();
        let done = self.plan_onto(&folder, weight);
        std::fs::remove_dir_all(&folder).unwrap();
        done
    }

    fn plan_onto(&self, base: &Path, weight: f64) -> Result<()> {
        let thread = format!("{:?}", std::thread::current().id());
        let folder = std::env::temp_dir().join(format!("qmerge-hostile-{}-{}{thread}", std::process::id(), self.name));
        written::adapter(&folder, Value::Object(self.config.clone()), &self.tensors);
        let done = (|| {
            let base = Checkpoint::open(base)?;
            let inputs = Inputs::new(base, vec![Adapter::open(&folder, weight)?])?;
            let plan = Plan::new(&inputs, &Options::default())?;
            // What depends on values is told when they are read.
            for step in &plan.steps {
                if let qmerge::plan::Action::Recode(recode) = &step.action {
                    qmerge::edited::Edited::new(&inputs, recode)?;
                }
            }
            Ok(())
        })();
        std::fs::remove_dir_all(&folder).unwrap();
        done
    }

    /// What is wrong with what is said: an error is wanted that has all of these words.
    fn fault(&self, words: &[&str]) -> Option<String> {
        let Err(error) = self.plan(1.0) else { return Some(format!("{}: taken, {words:?}", self.name)) };
        let text = format!("{error:?}");
        let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
        (!missing.is_empty()).then(|| format!("{}: {missing:?} is not in: {text}", self.name))
    }

    fn says(&self, words: &[&str]) {
        assert_eq!(self.fault(words), None);
    }
}

fn cases() -> Vec<String> {
    let folders = std::fs::read_dir(data()).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap());
    let mut cases: Vec<String> =
        folders.filter(|name| name.ends_with("llama-f32") && !name.starts_with("llama")).collect();
    cases.sort();
    cases
}

#[test]
fn every_method_has_a_case() {
    let cases: Vec<Case> = cases().iter().map(|name| Case::new(name)).collect();
    // Their own tests: `peft_cases.rs`, and Bone is MiSS by another name.
    let elsewhere = ["LORA", "TRAINABLE_TOKENS", "BONE"];
    for method in ADAPTERS.iter().map(|method| method.peft_type()).filter(|method| !elsewhere.contains(method)) {
        assert!(cases.iter().any(|case| case.config["peft_type"] == method), "{method}");
    }
}

/// Each tensor of each method with another shape, and away.
#[test]
fn shapes_that_do_not_fit_and_tensors_that_are_missing_are_told_by_name() {
    let mut faults = Vec::new();
    for name in cases() {
        let whole = Case::new(&name);
        whole.plan(1.0).unwrap();
        for number in 0..whole.tensors.len() {
            let tensor = whole.tensors[number].0.clone();
            let (method, is_base) = (whole.config["peft_type"].clone(), tensor.contains("base_layer"));
            // What a module that was trained whole lacks, the base has; a second copy is no loss.
            let is_copy = method == "RANDLORA" && (tensor.contains("randlora_A") || tensor.contains("randlora_B"));
            // What GLoRA saves of what is configured to be nothing.
            let is_nothing = tensor.ends_with(".zeros");
            if is_base || is_copy || is_nothing || method == "LN_TUNING" {
                continue;
            }
            let mut case = Case::new(&name);
            case.tensors.remove(number);
            let alone = whole
                .tensors
                .iter()
                .filter(|other| !other.0.contains("base_layer") && !other.0.ends_with(".zeros"))
                .filter(|other| module(&other.0) == module(&tensor))
                .count()
                == 1;
            // Of a method with one tensor per layer, the layer is as if it had never been chosen.
            if tensor == "base_model.unilora_theta_d" && whole.tensors.len() == 1 {
                // Nothing is left at all.
                faults.extend(case.fault(&["adapter_model.safetensors"]));
            } else if whole.config.get("proportional_parameters") == Some(&json!(true)) {
                // The others' shares are larger then.
                faults.extend(case.fault(&["waveft_spectrum", "shape"]));
            } else if alone
                && !tensor.starts_with("base_model.unilora")
                && !tensor.starts_with("base_model.vera")
                && !tensor.starts_with("base_model.pvera")
                && !tensor.contains("bank")
            {
                case.plan(1.0).unwrap();
            } else {
                faults.extend(case.fault(&["adapter_model.safetensors", "incomplete"]));
            }
            let shapes = [vec![0], vec![1, 0], vec![3, 5], vec![7], vec![2, 2, 2]];
            for shape in shapes.into_iter().filter(|shape| *shape != whole.tensors[number].2) {
                let mut case = Case::new(&name);
                let (_, dtype, own, bytes) = &mut case.tensors[number];
                let size = bytes.len() / own.iter().product::<usize>().max(1);
                let size = if size == 0 { 4 } else { size };
                *bytes = vec![0; size * shape.iter().product::<usize>()];
                *own = shape.clone();
                let _ = dtype;
                let own = tensor.rsplit('.').find(|part| *part != "weight").unwrap();
                // Of a Kronecker product, of values and their places, or of singular values, no shape is wrong by itself.
                let own = match method.as_str() {
                    Some("LOKR") => "lokr_w",
                    Some("SHIRA") => "shira_",
                    Some("OSF") => "osf_svd_params",
                    Some("FROD") => "frod_",
                    _ => own,
                };
                faults.extend(case.fault(&["adapter_model.safetensors", own]));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn module(tensor: &str) -> &str {
    let tensor = tensor.trim_end_matches(".weight");
    let containers = [".glora_", ".osf_svd_params", ".peanut_"];
    match containers.iter().find_map(|container| tensor.find(container)) {
        Some(end) => &tensor[..end],
        None => tensor.rsplit_once('.').unwrap().0,
    }
}

#[test]
fn fields_that_cannot_be_are_told_by_name() {
    let mut faults = Vec::new();
    for name in cases() {
        let mut case = Case::new(&name);
        if case.config["peft_type"] != "ADALORA" {
            case.config.insert("sparkle".into(), json!(0.5));
            faults.extend(case.fault(&["adapter_config.json", "`sparkle`", "take it out"]));
        }
    }
    for (name, field, value, words) in [
        ("loha-llama-f32", "r", json!(0), &["`r` is 0", "from 1 on"][..]),
        ("lokr-llama-f32", "alpha", json!("x"), &["`alpha`", "a number"]),
        ("loha-llama-f32", "rank_pattern", json!({"up_proj": 0}), &["rank_pattern", "rank 0"]),
        ("loha-llama-f32", "r", json!(5), &["shape [32, 4]", "[32, 5]", "different adapters"]),
        ("adalora-llama-f32", "init_r", json!(0), &["`init_r` is 0"]),
        ("adalora-llama-f32", "rank_pattern", json!({"a.lora_E": [1, 0]}), &["rank_pattern", "true and false"]),
        ("adalora-llama-f32", "use_dora", json!(true), &["`use_dora`", "AdaLoRA"]),
        ("oft-llama-f32", "r", json!(4), &["`r` is 4", "`oft_block_size` 8"]),
        ("oft-llama-f32", "oft_block_size", json!(16), &["blocks of 16", "want [3, 120]"]),
        ("oft-llama-f32", "num_cayley_neumann_terms", json!(0), &["num_cayley_neumann_terms"]),
        ("boft-llama-f32", "boft_block_size", json!(5), &["48 inputs", "blocks of 5"]),
        ("boft-llama-f32", "boft_n_butterfly_factor", json!(9), &["9 butterfly factors"]),
        ("hra-llama-f32", "r", json!(0), &["`r` is 0"]),
        ("vera-llama-f32", "r", json!(4_294_967_296_u64), &["vera_lambda_d"]),
        ("vera-seed-llama-f32", "save_projection", json!(true), &["`vera_A`", "incomplete"]),
        ("vera-seed-llama-f32", "projection_prng_key", json!(-1), &["`projection_prng_key` is -1"]),
        ("randlora-llama-f32", "r", json!(11), &["randlora_lambda"]),
        ("fourierft-llama-f32", "n_frequency", json!(4_000_000), &["4000000 frequencies", "adapter_config.json"]),
        ("miss-bat-llama-f32", "r", json!(7), &["7 does not divide"]),
        ("miss-mini-llama-f32", "mini_r", json!(5), &["5 does not divide"]),
        ("miss-llama-f32", "init_weights", json!("cat"), &["\"cat\"", "no variant"]),
        ("c3a-llama-f32", "block_size", json!(5), &["blocks of 5", "do not fill"]),
        ("road-1-llama-f32", "group_size", json!(7), &["`group_size` is 7", "even"]),
        ("road-1-llama-f32", "group_size", json!(14), &["groups of 14", "do not fill"]),
        ("road-1-llama-f32", "variant", json!("road_3"), &["\"road_3\"", "road_1, road_2 or road_4"]),
        ("gralora-llama-f32", "gralora_k", json!(3), &["`gralora_k`, 3, does not divide"]),
        ("vblora-llama-f32", "vector_length", json!(5), &["vectors of 5", "do not fill"]),
        ("vblora-llama-f32", "topk", json!(13), &["`topk` is 13, of 12"]),
        ("waveft-llama-f32", "wavelet_family", json!("db11"), &["`db11`", "wavelet_family"]),
        ("waveft-llama-f32", "n_frequency", json!(4_000_000), &["4000000 coefficients", "adapter_config.json"]),
        ("supertuning-llama-f32", "sparsity", json!(1.0), &["`sparsity` is 1", "below 1"]),
        ("supertuning-llama-f32", "sparsity", json!(0.5), &["supertuning_values", "[768]"]),
        ("deft-llama-f32", "decomposition_method", json!("svd"), &["\"svd\"", "relu or qr"]),
        ("peanut-llama-f32", "act_fn", json!("snake"), &["\"snake\"", "gelu_new", "let PEFT merge it"]),
        ("peanut-llama-f32", "depth", json!(9), &["`depth` is 9", "up to 8"]),
        ("peanut-llama-f32", "depth", json!(1), &["`peanut_encoders.0`", "incomplete"]),
        ("glora-llama-f32", "config_C", json!("constant"), &["`config_C` is \"constant\"", "lora, vector, none"]),
        ("glora-llama-f32", "config_A_B", json!("vector"), &["`glora_A.X`", "incomplete"]),
        ("tinylora-llama-f32", "weight_tying", json!(2), &["`weight_tying` is 2", "from 0 to 1"]),
        ("tinylora-seed-llama-f32", "save_projection", json!(true), &["`tinylora_P`", "incomplete"]),
        ("tinylora-llama-f32", "u", json!(9), &["tinylora_v.", "[9]"]),
        ("unilora-llama-f32", "r", json!(4_294_967_296_u64), &["`r` is 4294967296", "2³¹"]),
        ("unilora-llama-f32", "theta_d_length", json!(99), &["unilora_theta_d", "[99]"]),
        ("unilora-llama-f32", "layers_to_transform", json!([0]), &["`layers_to_transform`", "`convert_to_lora`"]),
        ("unilora-llama-f32", "target_modules", json!(["nope"]), &["`target_modules`", "no linear layer"]),
        ("unilora-llama-f32", "target_modules", json!("("), &["`target_modules`", "not a regular expression"]),
        ("unilora-llama-f32", "save_indices", json!(true), &["unilora_theta_d", "adapter_model.safetensors"]),
        ("frod-llama-f32", "save_projection", json!(false), &["`save_projection` is false", "signs"]),
    ] {
        let mut case = Case::new(name);
        case.config.insert(field.into(), value);
        faults.extend(case.fault(words));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn values_that_cannot_be_are_told_by_name() {
    let edit = |name: &str, tensor: &str, change: &dyn Fn(&mut Vec<u8>), words: &[&str]| {
        let mut case = Case::new(name);
        change(&mut case.tensors.iter_mut().find(|own| own.0.ends_with(tensor)).unwrap().3);
        case.says(words);
    };
    edit(
        "shira-llama-f32",
        "shira_indices",
        &|bytes| bytes[..4].copy_from_slice(&99_i32.to_le_bytes()),
        &["place [99,"],
    );
    edit(
        "shira-llama-f32",
        "shira_indices",
        &|bytes| bytes[..4].copy_from_slice(&(-1_i32).to_le_bytes()),
        &["negative"],
    );
    let far = |bytes: &mut Vec<u8>| bytes[..4].copy_from_slice(&9999_i32.to_le_bytes());
    edit("supertuning-llama-f32", "supertuning_indices", &far, &["place 9999", "32 × 48"]);
    edit("unilora-saved-llama-f32", "unilora_indices_B", &far, &["none of 100"]);
    edit("frod-llama-f32", "frod_s_indices.mlp_up_proj", &far, &["place [9999,", "32 × 32"]);
    edit("frod-llama-f32", "frod_s_size.mlp_up_proj", &far, &["a size of [9999, 32]"]);
    edit("frod-llama-f32", "frod_V.mlp_up_proj", &|bytes| bytes.fill(0), &["not independent"]);
    edit("vblora-topk-llama-f32", "topk_indices", &|bytes| bytes[0] = 12, &["vector 12 of 12"]);
    edit("hra-llama-f32", "hra_u", &|bytes| bytes.fill(0), &["column 0", "its length is 0"]);
    let nan = |bytes: &mut Vec<u8>| bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    for (name, tensor) in [("ia3-llama-f32", "ia3_l"), ("oft-llama-f32", "oft_R.weight"), ("vera-llama-f32", "vera_A")]
    {
        edit(name, tensor, &nan, &["NaN", tensor]);
    }
}

#[test]
fn what_has_no_half_is_refused_with_a_weight() {
    for (name, word) in [("hra-llama-f32", "0.5 times"), ("ln-llama-f32", "0.5 times")] {
        let error = format!("{:?}", Case::new(name).plan(0.5).unwrap_err());
        assert!(
            error.contains(word) && error.contains("adapter_config.json") && error.contains("leave out"),
            "{error}"
        );
    }
}

/// A tensor that another method calls so is none of this one's.
#[test]
fn tensors_of_another_method_are_not_taken() {
    let mut case = Case::new("loha-llama-f32");
    case.tensors.extend(Case::new("ia3-llama-f32").tensors);
    case.says(&["ia3_l"]);
}

/// A kind of adapter whose file does not say what it does.
#[test]
fn what_a_file_does_not_say_is_refused_with_the_reason() {
    for (kind, words) in [("PSOFT", ["signs", "convert_to_lora"]), ("ADAMSS", ["k-means", "where it was trained"])] {
        let mut case = Case::new("deft-llama-f32");
        case.config.insert("peft_type".into(), json!(kind));
        case.says(&[&[kind][..], &words].concat());
    }
    let mut case = Case::new("supertuning-llama-f32");
    case.tensors.retain(|tensor| !tensor.0.contains("indices"));
    case.says(&["`save_precomputed_indices` false", "let PEFT merge it"]);
    let mut case = Case::new("beft-llama-f32");
    case.tensors.iter_mut().for_each(|tensor| {
        tensor.0 = tensor.0.replace("self_attn.q_proj", "mlp.gate_proj");
        tensor.2 = if tensor.0.contains("gate_proj") { vec![1, 48] } else { tensor.2.clone() };
        tensor.3.resize(4 * tensor.2.iter().product::<usize>(), 0);
    });
    case.says(&["bias of `model.layers.0.mlp.gate_proj`", "has none"]);
}

/// Of a family whose order of modules is not known.
#[test]
fn what_goes_by_the_order_of_modules_is_refused_where_it_is_not_known() {
    let case = Case::new("tinylora-llama-f32");
    case.plan(1.0).unwrap();
    let error = format!("{:?}", case.plan_with("some-other", 1.0).unwrap_err());
    assert!(error.contains("order in which the model's code") && error.contains("`some-other`"), "{error}");
    // One vector for all needs no order.
    let mut case = case;
    case.config.insert("weight_tying".into(), json!(1));
    case.tensors.retain(|tensor| !tensor.0.ends_with("_v.1") && !tensor.0.ends_with("_v.2"));
    case.plan_with("some-other", 1.0).unwrap();
}

#[test]
fn an_old_oft_is_refused_by_name() {
    let mut case = Case::new("oft-llama-f32");
    case.tensors.iter_mut().for_each(|tensor| tensor.0 = tensor.0.replace("oft_R.weight", "oft_r"));
    case.says(&["before 0.16", "oft_r"]);
}
