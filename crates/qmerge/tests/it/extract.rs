//! Adapters of the difference between two models: merged into the base they give the tuned model again.

use crate::folder::Folder;
use crate::written::{self, f32s};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::arithmetic::{ExtractOptions, Extraction, Wanted, extract};
use qmerge::dtype::Dtype;
use qmerge::error::Kind;
use qmerge::formats;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;
use safetensors::SafeTensors;
use serde_json::{Value, json};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name)
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn read(file: &Path) -> Tensors {
    let bytes = std::fs::read(file).unwrap();
    let floats = |data: &[u8]| data.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors.iter().map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), floats(view.data())))).collect()
}

/// A model like a base in f32, with other values.
fn tuned(base: &Path, folder: &Folder, name: &str, change: impl Fn(&mut Tensors)) -> PathBuf {
    let path = folder.join(name);
    let mut tensors = read(&base.join("model.safetensors"));
    change(&mut tensors);
    let all: Vec<_> = tensors.into_iter().map(|(name, (shape, values))| f32s(name, &shape, values)).collect();
    written::model(&path, std::fs::read_to_string(base.join("config.json")).unwrap(), &all);
    path
}

fn options(wanted: Wanted) -> ExtractOptions {
    ExtractOptions { wanted, full: true, dtype: Dtype::F32, seed: 0, force: false, threads: 2 }
}

fn extracted(base: &Path, tuned: &Path, out: &Path, options: &ExtractOptions) -> Extraction {
    let (base, tuned) = (Checkpoint::open(base).unwrap(), Checkpoint::open(tuned).unwrap());
    extract(&base, &tuned, None, out, options, &Silent).unwrap_or_else(|error| panic!("{error:?}"))
}

fn merged(base: &Path, adapter: &Path, out: &Path, to: &str) -> Tensors {
    let inputs = Inputs::new(Checkpoint::open(base).unwrap(), vec![Adapter::open(adapter, 1.0).unwrap()]).unwrap();
    let options = Options { to: Some(formats::by_id(to).unwrap()), ..Options::default() };
    let plan = Plan::new(&inputs, &options).unwrap_or_else(|error| panic!("{error:?}"));
    assert!(plan.accounting[0].unused.is_empty());
    merge::run(&inputs, &plan, None, out, &RunOptions::default(), &Silent).unwrap_or_else(|error| panic!("{error:?}"));
    read(&out.join("model.safetensors"))
}

fn assert_close(got: &Tensors, want: &Tensors, tolerance: f32) {
    assert!(got.keys().eq(want.keys()));
    for (name, (shape, values)) in want {
        assert_eq!(*shape, got[name].0, "{name}");
        for (got, want) in got[name].1.iter().zip(values) {
            assert!((got - want).abs() <= tolerance, "{name}: {got} {want}");
        }
    }
}

/// Adds a matrix of rank 2, another for each name.
fn add_low_rank(tensors: &mut Tensors, part: &str) {
    for (name, (shape, values)) in tensors.iter_mut().filter(|(name, _)| name.contains(part)) {
        let [_, cols] = shape[..] else { continue };
        let wave = |i: usize, k: usize| (((i + k) * (i + 3 * k + name.len())) % 17) as f32 / 16.0 - 0.5;
        for (at, x) in values.iter_mut().enumerate() {
            let (r, c) = (at / cols, at % cols);
            *x += 0.2 * wave(r, 1) * wave(c, 2) - 0.1 * wave(r, 5) * wave(c, 7);
        }
    }
}

fn config(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn what_was_added_is_found_again() {
    for (base, linear) in [("peft-methods/bases/llama-f32", "proj"), ("peft-methods/bases/gpt2-f32", "c_attn")] {
        let (base, folder) = (data(base), Folder::new());
        let tuned = tuned(&base, &folder, "tuned", |tensors| {
            add_low_rank(tensors, linear);
            for (name, (_, values)) in tensors.iter_mut() {
                let whole = name.contains("norm")
                    || name.contains("ln_1")
                    || name.contains("wte")
                    || name.contains("embed_tokens");
                if whole || name.ends_with("_proj.bias") || name.ends_with("c_proj.bias") {
                    values.iter_mut().for_each(|x| *x += 0.25);
                }
            }
        });
        let found = extracted(&base, &tuned, &folder.join("adapter"), &options(Wanted::Rank(2)));
        assert!(found.kept.unwrap() > 1.0 - 1e-9 && found.left_out == Some(0.0), "{found:?}");
        assert!(found.dropped.is_empty() && !found.whole.is_empty());
        let mut got = merged(&base, &folder.join("adapter"), &folder.join("merged"), "f32");
        // Where PEFT does not know the table's name, its copy stands at both ends.
        if let Some(head) = got.remove("lm_head.weight").filter(|_| base.ends_with("gpt2-f32")) {
            assert_eq!(head, got["transformer.wte.weight"]);
        }
        let mut want = read(&tuned.join("model.safetensors"));
        want.remove("lm_head.weight");
        assert_close(&got, &want, 1e-6);
        // The same rank is found by what it holds, and what was left out is said.
        let by_energy = ExtractOptions { full: false, ..options(Wanted::Share(0.999999)) };
        let found = extracted(&base, &tuned, &folder.join("energy"), &by_energy);
        assert!(
            found.rank <= 2 && found.whole.is_empty() && found.left_out.is_some_and(|share| share > 0.0 && share < 1.0)
        );
        assert!(found.dropped.iter().all(|tensor| tensor.reason.contains("--no-full")));
        let less = ExtractOptions { threads: 1, ..by_energy };
        extracted(&base, &tuned, &folder.join("again"), &less);
        let bytes = |name: &str| std::fs::read(folder.join(name).join("adapter_model.safetensors")).unwrap();
        assert!(bytes("energy") == bytes("again"));
    }
}

/// PEFT loads no adapter that targets no module.
#[test]
fn an_adapter_of_norms_alone_targets_a_layer() {
    let (base, folder) = (data("peft-methods/bases/llama-f32"), Folder::new());
    let tuned = tuned(&base, &folder, "tuned", |tensors| {
        for (_, (_, values)) in tensors.iter_mut().filter(|(name, _)| name.contains("norm")) {
            values.iter_mut().for_each(|x| *x += 0.25);
        }
    });
    let found = extracted(&base, &tuned, &folder.join("adapter"), &options(Wanted::Rank(2)));
    assert!(found.weights.is_empty() && !found.whole.is_empty());
    let config = config(&folder.join("adapter"));
    let [target] = &config["target_modules"].as_array().unwrap()[..] else { panic!() };
    assert!(target.as_str().unwrap().ends_with("_proj"), "{target}");
    let got = merged(&base, &folder.join("adapter"), &folder.join("merged"), "f32");
    assert_close(&got, &read(&tuned.join("model.safetensors")), 0.0);
}

/// PEFT copies a module that it is to save with all that is inside, factors included; a parameter beside them goes by its own name, as trained biases do.
#[test]
fn a_parameter_beside_other_modules_is_taken_by_itself() {
    const SINKS: &str = "model.layers.0.self_attn.sinks";
    let (plain, folder) = (data("peft-methods/bases/llama-f32"), Folder::new());
    let base = tuned(&plain, &folder, "base", |tensors| drop(tensors.insert(SINKS.into(), (vec![4], vec![1.0; 4]))));
    let other = tuned(&base, &folder, "tuned", |tensors| {
        add_low_rank(tensors, "q_proj");
        tensors.get_mut(SINKS).unwrap().1[2] = 3.0;
    });
    let found = extracted(&base, &other, &folder.join("adapter"), &options(Wanted::Rank(2)));
    assert_eq!(found.whole, [SINKS]);
    assert_eq!(config(&folder.join("adapter"))["modules_to_save"], Value::Null);
    let tensors = Checkpoint::open_weights(&folder.join("adapter/adapter_model.safetensors")).unwrap();
    assert!(tensors.has(&format!("base_model.model.{SINKS}")));
    let got = merged(&base, &folder.join("adapter"), &folder.join("merged"), "f32");
    assert_close(&got, &read(&other.join("model.safetensors")), 1e-6);
}

/// As many values are not the same matrix.
#[test]
fn a_matrix_of_another_shape_is_left_out() {
    let (base, folder) = (data("peft-methods/bases/llama-f32"), Folder::new());
    let tuned = tuned(&base, &folder, "tuned", |tensors| {
        add_low_rank(tensors, "q_proj");
        tensors.get_mut("model.layers.0.mlp.down_proj.weight").unwrap().0.reverse();
    });
    let found = extracted(&base, &tuned, &folder.join("adapter"), &options(Wanted::Rank(2)));
    let [dropped] = &found.dropped[..] else { panic!("{found:?}") };
    assert!(dropped.name.ends_with("down_proj.weight") && dropped.reason.contains("shape"));
    // What cannot be compared differs by no number.
    assert_eq!(found.left_out, None);
}

/// A classifier that was trained from a language model: its head, which the base lacks, is taken whole, and what it has no more is said.
#[test]
fn the_head_of_a_classifier_is_taken_whole() {
    let (base, folder) = (data("peft-methods/bases/llama-f32"), Folder::new());
    let tuned = tuned(&base, &folder, "tuned", |tensors| {
        add_low_rank(tensors, "q_proj");
        tensors.remove("lm_head.weight");
        let width = tensors["model.norm.weight"].0[0];
        tensors.insert("score.weight".into(), (vec![3, width], (0..3 * width).map(|at| at as f32 / 64.0).collect()));
    });
    let architecture = |class: &str| {
        let path = tuned.join("config.json");
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config["architectures"] = json!([class]);
        std::fs::write(&path, config.to_string()).unwrap();
    };
    architecture("LlamaForSequenceClassification");
    let found = extracted(&base, &tuned, &folder.join("adapter"), &options(Wanted::Rank(2)));
    assert_eq!(found.whole, ["score.weight"]);
    assert!(found.dropped.iter().all(|tensor| tensor.name == "lm_head.weight"), "{found:?}");
    let config = config(&folder.join("adapter"));
    assert_eq!((&config["task_type"], &config["modules_to_save"]), (&json!("SEQ_CLS"), &json!(["score"])));
    let mut got = merged(&base, &folder.join("adapter"), &folder.join("merged"), "f32");
    got.remove("lm_head.weight");
    assert_close(&got, &read(&tuned.join("model.safetensors")), 1e-6);
    // Of one that was trained no further, the head is all.
    let head = self::tuned(&tuned, &folder, "head", |tensors| {
        let base = read(&base.join("model.safetensors"));
        tensors
            .iter_mut()
            .filter(|(name, _)| base.contains_key(*name))
            .for_each(|(name, own)| *own = base[name].clone());
    });
    let found = extracted(&base, &head, &folder.join("head-adapter"), &options(Wanted::Rank(2)));
    assert_eq!((&found.whole[..], found.weights.len()), (&["score.weight".to_owned()][..], 0));
    let got = merged(&base, &folder.join("head-adapter"), &folder.join("head-merged"), "f32");
    assert_eq!(got["score.weight"], read(&head.join("model.safetensors"))["score.weight"]);
    // One more layer than the base has is no head.
    let more = self::tuned(&tuned, &folder, "more", |tensors| {
        drop(tensors.insert("model.layers.9.mlp.up_proj.weight".into(), (vec![2, 2], vec![1.0; 4])));
    });
    let found = extracted(&base, &more, &folder.join("more-adapter"), &options(Wanted::Rank(2)));
    assert_eq!(found.whole, ["score.weight"]);
    assert!(found.dropped.iter().any(|tensor| tensor.name.contains("layers.9")));
    // A layer that is missing is a file that is not whole, whatever the class.
    let part =
        self::tuned(&tuned, &folder, "part", |tensors| drop(tensors.remove("model.layers.0.mlp.up_proj.weight")));
    let (base, part) = (Checkpoint::open(&base).unwrap(), Checkpoint::open(&part).unwrap());
    let error = extract(&base, &part, None, &folder.join("no"), &options(Wanted::Rank(2)), &Silent).unwrap_err();
    assert_eq!(error.kind(), Kind::Mismatch);
}

/// Ranks that differ stand in patterns that mean one module each.
#[test]
fn modules_get_the_rank_that_holds_their_share() {
    let (base, folder) = (data("peft-methods/bases/llama-f32"), Folder::new());
    let tuned = tuned(&base, &folder, "tuned", |tensors| {
        add_low_rank(tensors, "q_proj.weight");
        let (_, values) = tensors.get_mut("model.layers.0.self_attn.v_proj.weight").unwrap();
        values.iter_mut().enumerate().for_each(|(i, x)| *x += ((i * i * 31 + 7 * i) % 101) as f32 / 500.0);
    });
    let found = extracted(&base, &tuned, &folder.join("adapter"), &options(Wanted::Share(0.95)));
    let ranks: BTreeMap<&str, usize> =
        found.weights.iter().map(|weight| (weight.module.as_str(), weight.rank)).collect();
    assert_eq!(ranks.len(), 2);
    assert!(ranks["model.layers.0.self_attn.q_proj"] <= 2 && ranks["model.layers.0.self_attn.v_proj"] > 2);
    let config = config(&folder.join("adapter"));
    assert_eq!(config["rank_pattern"], config["alpha_pattern"]);
    assert_eq!(
        config["rank_pattern"][r"^model\.layers\.0\.self_attn\.q_proj"],
        json!(ranks["model.layers.0.self_attn.q_proj"])
    );
    assert!(found.weights.iter().all(|weight| weight.kept >= 0.95));
    let got = merged(&base, &folder.join("adapter"), &folder.join("merged"), "f32");
    let (before, after) = (read(&base.join("model.safetensors")), read(&tuned.join("model.safetensors")));
    let of = |tensors: &Tensors, other: &Tensors| -> f64 {
        let squares = |(name, (_, x)): (&String, &(Vec<usize>, Vec<f32>))| {
            x.iter().zip(&other[name].1).map(|(a, b)| f64::from(a - b) * f64::from(a - b)).sum::<f64>()
        };
        tensors.iter().map(squares).sum()
    };
    assert!((1.0 - of(&got, &after) / of(&before, &after) - found.kept.unwrap()).abs() < 1e-5);
}

/// Models of experts, whatever holds their matrices on disk, with an adapter by PEFT: on the stacked parameters, or one for each expert.
const EXPERTS: &[&str] = &[
    "mixtral-parameters",
    "mixtral-down-only",
    "mixtral-per-expert-f32",
    "qwen2-moe-parameters",
    "nemotron-h-parameters",
    "qwen3-moe-bare-names",
    "gpt-oss-parameters",
    "granitemoe-parameters",
    "granitemoe-per-expert-f32",
    "llama4-parameters",
];

fn shapes(adapter: &Path) -> BTreeMap<String, Vec<usize>> {
    let bytes = std::fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    tensors.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec())).collect()
}

/// Stacks of experts become what PEFT makes of `target_parameters`: the same names and shapes as in its own files, and the same matrices.
#[test]
fn stacks_of_experts_become_loras_on_their_parameters() {
    for name in EXPERTS {
        let folder = Folder::new();
        let (base, adapter) =
            (data("peft-cases").join(name).join("base"), data("peft-cases").join(name).join("adapter"));
        let want = merged(&base, &adapter, &folder.join("tuned"), "f32");
        // Gate and up are one matrix of two in the adapters that have one for each.
        let rank = if name.contains("per-expert-f32") || name.contains("bare-names") { 8 } else { 4 };
        let found = extracted(&base, &folder.join("tuned"), &folder.join("adapter"), &options(Wanted::Rank(rank)));
        // A delta of a parameter in bf16 is rounded to that, as PEFT computes it: it is not of low rank to the last bit, and neither is what is extracted.
        let (lost, off) = if name.contains("f32") { (1e-9, 2e-6) } else { (1e-5, 4e-3) };
        assert!(found.kept.unwrap() > 1.0 - lost && found.dropped.is_empty(), "{name}: {found:?}");
        let got = merged(&base, &folder.join("adapter"), &folder.join("merged"), "f32");
        assert_close(&got, &want, off);
        let (own, peft) = (shapes(&folder.join("adapter")), shapes(&adapter));
        let targets = config(&folder.join("adapter"))["target_parameters"].clone();
        assert!(targets.as_array().is_some_and(|targets| !targets.is_empty()), "{name}: {targets}");
        if name.contains("parameters") || name.contains("down-only") {
            let experts = |all: &BTreeMap<String, Vec<usize>>| {
                all.iter()
                    .filter(|(name, _)| name.contains(".experts."))
                    .map(|(a, b)| (a.clone(), b.clone()))
                    .collect::<Vec<_>>()
            };
            assert_eq!(experts(&own), experts(&peft), "{name}");
        }
        // At the rank that holds all, modules differ in rank, by the names of parameters.
        let found =
            extracted(&base, &folder.join("tuned"), &folder.join("energy"), &options(Wanted::Share(1.0 - lost)));
        assert!(found.weights.iter().all(|weight| weight.rank <= 10), "{name}: {:?}", found.weights);
        assert_close(&merged(&base, &folder.join("energy"), &folder.join("again"), "f32"), &want, off);
    }
}

/// Biases of experts lie beside their matrices, where PEFT can put a LoRA on them by name: one that holds all of what they differ by. A router is no linear layer, and
/// is targeted by its weight's name.
#[test]
fn biases_of_experts_and_routers_are_targeted_by_name() {
    let (base, folder) = (data("peft-cases/gpt-oss-per-expert-f32/base"), Folder::new());
    let tuned = tuned(&base, &folder, "tuned", |tensors| {
        for (name, (_, values)) in tensors.iter_mut() {
            if name.contains("_proj_bias") || name.contains("router") || name.contains("down_proj") {
                values.iter_mut().enumerate().for_each(|(i, x)| *x += ((i * i * 31 + 7 * i) % 101) as f32 / 500.0);
            }
        }
    });
    let found = extracted(&base, &tuned, &folder.join("adapter"), &options(Wanted::Rank(32)));
    assert!(found.dropped.is_empty() && found.whole.iter().any(|name| name.ends_with("down_proj_bias")), "{found:?}");
    let config = config(&folder.join("adapter"));
    let target = |name: &str| json!(format!("model.layers.0.mlp.{name}"));
    let targets = ["experts.down_proj", "experts.down_proj_bias", "experts.gate_up_proj_bias", "router.weight"];
    assert_eq!(config["target_parameters"], json!(targets.map(target)));
    assert_eq!(config["rank_pattern"][r"^model\.layers\.0\.mlp\.experts\.down_proj_bias"], json!(3));
    let got = merged(&base, &folder.join("adapter"), &folder.join("merged"), "f32");
    assert_close(&got, &read(&tuned.join("model.safetensors")), 2e-6);
}

/// Either side in any format: the difference holds what rounding did, and says so.
#[test]
fn quantized_models_are_compared_as_what_they_hold() {
    let folder = Folder::new();
    let (base, adapter) = (data("tiny-llama/bases/base-nf4dq"), data("tiny-llama/adapters/plain"));
    let tuned = folder.join("tuned");
    merged(&base, &adapter, &tuned, "f32");
    let found = extracted(&base, &tuned, &folder.join("adapter"), &options(Wanted::Rank(8)));
    assert!(found.kept.unwrap() > 1.0 - 1e-6, "{:?}", found.kept);
    assert!(found.warnings.iter().any(|text| text.contains("nf4")), "{:?}", found.warnings);
    let got = merged(&base, &folder.join("adapter"), &folder.join("merged"), "f32");
    assert_close(&got, &read(&tuned.join("model.safetensors")), 1e-6);
}

#[test]
fn models_that_do_not_go_together_are_refused() {
    let (base, folder) = (data("peft-methods/bases/llama-f32"), Folder::new());
    let refused = |tuned: &Path, options: &ExtractOptions| {
        let (base, tuned) = (Checkpoint::open(&base).unwrap(), Checkpoint::open(tuned).unwrap());
        let error = extract(&base, &tuned, None, &folder.join("out"), options, &Silent).unwrap_err();
        assert!(error.kind() != Kind::Bug && !folder.join("out").exists() && !folder.join("out.partial").exists());
        format!("{error:?}")
    };
    let rank = options(Wanted::Rank(4));
    assert!(refused(&base, &rank).contains("do not differ"));
    for (wanted, words) in
        [(Wanted::Rank(0), "rank 0"), (Wanted::Share(0.0), "above 0"), (Wanted::Share(f64::NAN), "above 0")]
    {
        assert!(refused(&base, &options(wanted)).contains(words));
    }
    assert!(refused(&data("peft-methods/bases/gpt2-f32"), &rank).contains("has no weight"));
    let nan = tuned(&base, &folder, "nan", |tensors| {
        tensors.get_mut("model.layers.0.self_attn.q_proj.weight").unwrap().1[5] = f32::NAN
    });
    let error = refused(&nan, &rank);
    assert!(error.contains("NaN") && error.contains("q_proj"), "{error}");
    let norms = tuned(&base, &folder, "norms", |tensors| tensors.get_mut("model.norm.weight").unwrap().1[5] = 9.0);
    assert!(refused(&norms, &ExtractOptions { full: false, ..rank.clone() }).contains("only in what"));
    // More tokens than the base has, and a head of its own: left out, and said so.
    let grown = tuned(&base, &folder, "grown", |tensors| {
        add_low_rank(tensors, "q_proj.weight");
        let (shape, values) = tensors.get_mut("model.embed_tokens.weight").unwrap();
        shape[0] += 1;
        values.extend(vec![0.0; shape[1]]);
        tensors.insert("score.weight".into(), (vec![2, 32], vec![0.5; 64]));
    });
    let found = extracted(&base, &grown, &folder.join("grown-adapter"), &rank);
    let dropped: Vec<(&str, &str)> = found.dropped.iter().map(|tensor| (tensor.name.as_str(), tensor.reason)).collect();
    assert_eq!(
        dropped,
        [
            ("model.embed_tokens.weight", "its shape differs between the models"),
            ("score.weight", "the base has no such weight")
        ]
    );
}
