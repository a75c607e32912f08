//! Combinations of adapters, against PEFT 0.21.2's add_weighted_adapter (testdata/combinations, made by testdata/gen/combinations.py, which says where PEFT's result
//! is put right).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::arithmetic::{Combination, CombineOptions, Majority, Method, combine};
use qmerge::error::{Kind, Result};
use qmerge::open::Checkpoint;
use qmerge::progress::Silent;
use serde_json::{Value, json};

use crate::folder::Folder;
use crate::written::{self, f32s};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/combinations")
}

fn open(name: &str, weight: f64) -> Adapter {
    Adapter::open(&data().join("adapters").join(name), weight).unwrap()
}

fn floats(checkpoint: &Checkpoint, name: &str) -> (Vec<usize>, Vec<f64>) {
    let entry = checkpoint.get(name).unwrap_or_else(|| panic!("{name} is missing"));
    let bytes = checkpoint.read_small(entry, 1 << 30).unwrap();
    (entry.shape.clone(), bytes.chunks(4).map(|x| f64::from(f32::from_le_bytes(x.try_into().unwrap()))).collect())
}

fn config(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("adapter_config.json")).unwrap()).unwrap()
}

/// What an adapter adds to each module: (outputs, inputs) with its values. Its scaling has to be 1.
fn deltas(folder: &Path) -> BTreeMap<String, (usize, Vec<f64>)> {
    let config = config(folder);
    assert_eq!((&config["r"], &config["use_rslora"]), (&config["lora_alpha"], &json!(false)));
    assert_eq!((&config["rank_pattern"], &config["alpha_pattern"]), (&json!({}), &json!({})));
    let tensors = Checkpoint::open_weights(&folder.join("adapter_model.safetensors")).unwrap();
    let mut found = BTreeMap::new();
    for entry in &tensors.entries {
        let (module, b) = match entry.name.strip_suffix(".lora_A.weight") {
            Some(module) => (module, format!("{module}.lora_B.weight")),
            None => match entry.name.strip_suffix(".lora_embedding_A") {
                Some(module) => (module, format!("{module}.lora_embedding_B")),
                None => continue,
            },
        };
        let ((a_shape, a), (b_shape, b)) = (floats(&tensors, &entry.name), floats(&tensors, &b));
        let (rank, inputs, outputs) = (a_shape[0], a_shape[1], b_shape[0]);
        assert_eq!(config["r"], json!(rank), "{module}");
        let one = |at: usize| (0..rank).map(|k| b[at / inputs * rank + k] * a[k * inputs + at % inputs]).sum();
        let module = module.strip_prefix("base_model.model.").unwrap().to_owned();
        found.insert(module, (inputs, (0..outputs * inputs).map(one).collect()));
    }
    found
}

fn options(case: &Value) -> CombineOptions {
    CombineOptions {
        rank: case["rank"].as_u64().map(|rank| rank as usize),
        density: case["density"].as_f64(),
        majority: if case["majority_sign"] == "frequency" { Majority::Frequency } else { Majority::Total },
        threads: 2,
        ..CombineOptions::new(Method::by_id(case["method"].as_str().unwrap()).unwrap())
    }
}

fn adapters(case: &Value) -> Vec<Adapter> {
    let weights = case["weights"].as_array().unwrap().iter().map(|weight| weight.as_f64().unwrap());
    case["adapters"]
        .as_array()
        .unwrap()
        .iter()
        .zip(weights)
        .map(|(name, weight)| open(name.as_str().unwrap(), weight))
        .collect()
}

#[test]
fn combinations_are_those_of_peft() {
    let cases: BTreeMap<String, Value> =
        serde_json::from_str(&std::fs::read_to_string(data().join("cases.json")).unwrap()).unwrap();
    let expected = Checkpoint::open(&data().join("expected.safetensors")).unwrap();
    let mut failures = Vec::new();
    for (name, case) in &cases {
        let folder = Folder::new();
        let out = folder.join("out");
        let found = combine(&adapters(case), None, &out, &options(case), &Silent)
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let deltas = deltas(&out);
        let wanted: Vec<&str> =
            expected.entries.iter().filter_map(|entry| entry.name.strip_prefix(&format!("{name}/"))).collect();
        assert_eq!(deltas.len(), wanted.len(), "{name}: {:?} {wanted:?}", deltas.keys());
        assert_eq!(found.weights.len(), wanted.len());
        for module in wanted {
            let (shape, want) = floats(&expected, &format!("{name}/{module}"));
            let (inputs, got) = &deltas[module];
            assert_eq!(*inputs, shape[1], "{name} {module}");
            let largest = want.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            let off = crate::largest(got.iter().zip(&want).map(|(got, want)| (got - want).abs()));
            // PEFT computes in f32; an SVD of it, and the sums of ties, are good to some units.
            if off > 4e-6 * largest {
                failures.push(format!("{name} {module}: off by {:.1e} of the largest", off / largest));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn made(adapters: &[Adapter], options: &CombineOptions) -> (Folder, Combination) {
    let folder = Folder::new();
    let found =
        combine(adapters, None, &folder.join("out"), options, &Silent).unwrap_or_else(|error| panic!("{error:?}"));
    (folder, found)
}

fn method(id: &str) -> CombineOptions {
    CombineOptions::new(Method::by_id(id).unwrap())
}

/// Σ weight · D by module.
fn sum(parts: &[(&str, f64)]) -> BTreeMap<String, Vec<f64>> {
    let mut sums: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (name, weight) in parts {
        let (one, _) = made(&[open(name, 1.0)], &method("cat"));
        for (module, (_, values)) in deltas(&one.join("out")) {
            let own = sums.entry(module).or_insert_with(|| vec![0.0; values.len()]);
            own.iter_mut().zip(values).for_each(|(sum, x)| *sum += weight * x);
        }
    }
    sums
}

fn close(folder: &Path, want: &BTreeMap<String, Vec<f64>>, tolerance: f64) {
    let got = deltas(folder);
    assert_eq!(got.len(), want.len());
    for (module, (_, got)) in got {
        let want = &want[&module];
        let largest = want.iter().fold(1e-3_f64, |most, x| most.max(x.abs()));
        let off = crate::largest(got.iter().zip(want).map(|(got, want)| (got - want).abs()));
        assert!(off <= tolerance * largest, "{module}: {:.1e}", off / largest);
    }
}

/// The default is the sum itself, of no higher rank than it takes.
#[test]
fn the_exact_sum_takes_as_many_directions_as_it_has() {
    let (out, found) = made(&[open("a", 0.7), open("c", -0.3)], &method("exact"));
    assert_eq!((found.rank, found.kept), (10, None));
    close(&out.join("out"), &sum(&[("a", 0.7), ("c", -0.3)]), 1e-6);
    // The same adapter twice has no new directions.
    let (out, found) = made(&[open("a", 0.7), open("a", 0.5)], &method("exact"));
    assert_eq!(found.rank, 4);
    close(&out.join("out"), &sum(&[("a", 1.2)]), 1e-6);
    let (out, found) = made(&[open("a", 1.0), open("c", 1.0), open("a", -1.0)], &method("exact"));
    assert_eq!(found.rank, 6);
    let want = sum(&[("a", 1.0), ("c", 1.0), ("a", -1.0)]);
    let got = deltas(&out.join("out"));
    assert!(got.keys().eq(want.keys()));
    close(&out.join("out"), &want, 1e-6);
    // Nothing is left of it.
    let (out, found) = made(&[open("a", 1.0), open("a", -1.0)], &method("exact"));
    assert_eq!(found.rank, 1);
    assert!(deltas(&out.join("out")).values().all(|(_, values)| values.iter().all(|x| *x == 0.0)));
    // A rank above that of every matrix is filled up.
    let (out, found) = made(&[open("a", 1.0), open("b", 2.0)], &CombineOptions { rank: Some(60), ..method("svd") });
    assert_eq!(found.rank, 60);
    assert!((found.kept.unwrap() - 1.0).abs() < 1e-12);
    close(&out.join("out"), &sum(&[("a", 1.0), ("b", 2.0)]), 1e-6);
}

#[test]
fn modules_may_have_factors_of_their_own() {
    let scales = vec![r"v_proj$=0.5".into(), "proj=2".into(), "^model=9".into()];
    let (out, _) = made(&[open("a", 1.0), open("b", 1.0)], &CombineOptions { scales, ..method("exact") });
    let mut want = sum(&[("a", 1.0), ("b", 1.0)]);
    for (module, values) in &mut want {
        let factor = if module.ends_with("v_proj") {
            0.5
        } else if module.contains("proj") {
            2.0
        } else {
            9.0
        };
        values.iter_mut().for_each(|x| *x *= factor);
    }
    close(&out.join("out"), &want, 1e-6);
    for rule in ["mlp", "mlp=x", "(=1", "mlp=inf"] {
        let error = refused(&[open("a", 1.0)], &CombineOptions { scales: vec![rule.into()], ..method("exact") });
        assert!(error.contains("--lora-scale"), "{error}");
    }
}

/// The bytes depend on the seed, and on nothing else.
#[test]
fn what_is_drawn_is_drawn_again() {
    let bytes = |options: &CombineOptions| {
        let (out, _) = made(&[open("a", 0.7), open("b", 0.3), open("a", 0.1)], options);
        std::fs::read(out.join("out/adapter_model.safetensors")).unwrap()
    };
    for id in ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"] {
        let options = CombineOptions { density: Some(0.5), seed: 3, ..method(id) };
        let first = bytes(&options);
        assert!(first == bytes(&CombineOptions { threads: 3, ..options.clone() }), "{id}");
        assert!(first != bytes(&CombineOptions { seed: 4, ..options.clone() }), "{id}");
        assert!(first != bytes(&CombineOptions { density: Some(1.0), ..options }), "{id}");
    }
    for id in ["exact", "svd"] {
        assert!(bytes(&method(id)) == bytes(&CombineOptions { threads: 3, seed: 1, ..method(id) }), "{id}");
    }
}

fn refused(adapters: &[Adapter], options: &CombineOptions) -> String {
    let folder = Folder::new();
    let error = combine(adapters, None, &folder.join("out"), options, &Silent).unwrap_err();
    assert!(error.kind() != Kind::Bug, "{error:?}");
    assert!(!folder.join("out").exists() && !folder.join("out.partial").exists());
    format!("{error:?}")
}

#[test]
fn choices_that_mean_nothing_are_refused() {
    let both = || [open("a", 1.0), open("c", 1.0)];
    for (options, words) in [
        (CombineOptions { rank: Some(4), ..method("exact") }, "--method svd"),
        (CombineOptions { rank: Some(0), ..method("svd") }, "rank 0"),
        (CombineOptions { density: Some(0.5), ..method("svd") }, "drops no values"),
        (method("ties"), "--density"),
        (CombineOptions { density: Some(0.0), ..method("ties_svd") }, "above 0"),
        (CombineOptions { density: Some(f64::NAN), ..method("ties_svd") }, "above 0"),
        (method("linear"), "rank 4 in"),
        (CombineOptions { density: Some(0.5), ..method("dare_ties") }, "--method svd"),
    ] {
        let error = refused(&both(), &options);
        assert!(error.contains(words), "{error}");
    }
    assert!(refused(&[], &method("exact")).contains("no adapter"));
    assert!(Method::by_id("best").is_err());
    // Another model.
    assert!(refused(&[open("a", 1.0), open("d", f64::MAX)], &method("exact")).contains("overflows"));
}

/// Writes an adapter like `a` with another configuration or other tensors.
fn written(folder: &Folder, name: &str, fields: Value, tensors: &[(&str, &[usize], f32)]) -> Result<Adapter> {
    let path = folder.join(name);
    let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]});
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let own = |(name, shape, value): &(&str, &[usize], f32)| {
        let values = (0..shape.iter().product()).map(|i: usize| value * (1.0 + (i * i % 7) as f32));
        f32s(format!("base_model.model.{name}"), shape, values)
    };
    written::adapter(&path, config, &tensors.iter().map(own).collect::<Vec<_>>());
    Adapter::open(&path, 1.0)
}

const Q: [(&str, &[usize], f32); 2] = [("x.q.lora_A.weight", &[2, 6], 0.5), ("x.q.lora_B.weight", &[5, 2], 0.25)];

#[test]
fn adapters_that_do_not_go_together_are_refused() {
    let folder = Folder::new();
    let plain = || written(&folder, "plain", json!({}), &Q).unwrap();
    let with = |name: &str, fields: Value, more: &[(&'static str, &'static [usize], f32)]| {
        written(&folder, name, fields, &[&Q[..], more].concat()).unwrap()
    };
    let whole =
        |name: &str, value: f32| with(name, json!({"modules_to_save": ["head"]}), &[("head.weight", &[3, 6], value)]);
    let cases = [
        (with("dora", json!({"use_dora": true}), &[("x.q.lora_magnitude_vector", &[5], 1.0)]), "DoRA"),
        (with("alora", json!({"alora_invocation_tokens": [1, 2]}), &[]), "invocation tokens"),
        (with("pissa", json!({"init_lora_weights": "pissa"}), &[]), "--base-is-residual"),
        (with("parameters", json!({"target_parameters": ["w"]}), &[]), "target_parameters"),
        (with("replicated", json!({"layer_replication": [[0, 2]]}), &[]), "layer_replication"),
        (with("half", json!({}), &[("y.q.lora_A.weight", &[2, 6], 1.0)]), "partner"),
        (
            written(&folder, "small", json!({}), &[("x.q.lora_A.weight", &[2, 7], 1.0), Q[1]]).unwrap(),
            "different bases",
        ),
        (written(&folder, "rank", json!({"r": 3}), &Q).unwrap(), "configuration says 3"),
        (written(&folder, "nan", json!({}), &[("x.q.lora_A.weight", &[2, 6], f32::NAN), Q[1]]).unwrap(), "NaN"),
        (written(&folder, "huge", json!({"lora_alpha": 1e300}), &Q).unwrap(), "overflows"),
    ];
    for (adapter, words) in cases {
        let name = adapter.path.file_name().unwrap().to_owned();
        let error = refused(&[plain(), adapter], &method("exact"));
        assert!(
            error.contains(words) && error.contains(name.to_str().unwrap()) || words == "overflows",
            "{words}: {error}"
        );
    }
    let error = refused(&[whole("one", 1.0), whole("two", 2.0)], &method("exact"));
    assert!(error.contains("trained copy of its own"), "{error}");
    // The same copy, or one alone, is taken as it is.
    for pair in [[whole("one", 1.0), whole("three", 1.0)], [plain(), whole("one", 1.0)]] {
        let (out, found) = made(&pair, &method("exact"));
        assert_eq!(found.copied, ["base_model.model.head.weight"]);
        assert_eq!(config(&out.join("out"))["modules_to_save"], json!(["head"]));
    }
    let ia3 = written(
        &folder,
        "ia3",
        json!({"peft_type": "IA3", "r": null, "lora_alpha": null, "feedforward_modules": []}),
        &[("x.q.ia3_l", &[5, 1], 1.0)],
    )
    .unwrap();
    assert!(refused(&[plain(), ia3], &method("exact")).contains("IA3"));
    // The output is never one of the adapters.
    let error =
        combine(&[plain()], None, &folder.join("plain"), &CombineOptions { force: true, ..method("exact") }, &Silent);
    assert!(error.unwrap_err().to_string().contains("made from"));
    assert!(folder.join("plain/adapter_model.safetensors").exists());
}

/// A parameter is one however an adapter calls it: behind `base_layer` where that adapter has factors for its module.
#[test]
fn what_two_adapters_call_otherwise_is_one_parameter() {
    let folder = Folder::new();
    let bias = |name: &str, tensor: &'static str, factors: &[(&'static str, &'static [usize], f32)], value: f32| {
        let tensors = [factors, &[(tensor, &[5][..], value)]].concat();
        written(&folder, name, json!({"bias": "all"}), &tensors).unwrap()
    };
    let k: [(&str, &[usize], f32); 2] = [("x.k.lora_A.weight", &[2, 6], 1.0), ("x.k.lora_B.weight", &[5, 2], 1.0)];
    // PEFT looks behind `base_layer` for what the other adapter trained without factors.
    let (out, found) =
        made(&[bias("one", "x.k.bias", &Q, 1.0), written(&folder, "k", json!({}), &k).unwrap()], &method("exact"));
    assert_eq!(found.copied, ["base_model.model.x.k.base_layer.bias"]);
    assert!(Checkpoint::open_weights(&out.join("out/adapter_model.safetensors")).unwrap().has(&found.copied[0]));
    // Two copies of it are no more one than under one name.
    let two = [bias("two", "x.q.base_layer.bias", &Q, 1.0), bias("three", "x.q.bias", &k, 2.0)];
    let error = refused(&two, &method("exact"));
    assert!(error.contains("trained copy of its own"), "{error}");
    // What one trained whole has no factors of another.
    let whole = [&k[..], &[("x.q.weight", &[5, 6][..], 1.0)]].concat();
    let whole = written(&folder, "whole", json!({"modules_to_save": ["x.q"]}), &whole).unwrap();
    let error = refused(&[written(&folder, "q", json!({}), &Q).unwrap(), whole], &method("exact"));
    assert!(error.contains("factors") && error.contains("x.q.weight"), "{error}");
}

/// In which order a module declares its parameters is the base's to say, and does not matter where all of them have one rank and factor.
#[test]
fn experts_without_a_gate_are_combined_without_a_base() {
    // Two experts of rank 2, by wrapper.
    let tensors: [(&str, &[usize], f32); 4] = [
        ("x.mixer.experts.base_layer.lora_A.weight", &[4, 6], 0.5),
        ("x.mixer.experts.base_layer.lora_B.weight", &[5, 4], 0.25),
        ("x.mixer.experts.lora_A.weight", &[4, 5], 1.0),
        ("x.mixer.experts.lora_B.weight", &[6, 4], 2.0),
    ];
    let targets = json!(["mixer.experts.up_proj", "mixer.experts.down_proj"]);
    let folder = Folder::new();
    let open = |name: &str, more: Value| {
        let mut fields = json!({"target_parameters": targets, "target_modules": []});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        written(&folder, name, fields, &tensors).unwrap()
    };
    let (one, mut two) = (open("one", json!({})), open("two", json!({"lora_alpha": 1})));
    two.weight = -3.0;
    let (out, found) = made(&[one, two], &method("cat"));
    assert_eq!(found.rank, 4);
    assert_eq!(config(&out.join("out"))["target_parameters"], targets);
    let file = Checkpoint::open_weights(&out.join("out/adapter_model.safetensors")).unwrap();
    let source = Checkpoint::open_weights(&folder.join("one/adapter_model.safetensors")).unwrap();
    // The delta of one expert: A has experts behind each other, B side by side, the expert fastest.
    let delta = |file: &Checkpoint, at: usize, rank: usize, expert: usize| -> Vec<f64> {
        let ((a_name, a_shape, _), (b_name, b_shape, _)) = (tensors[at], tensors[at + 1]);
        let values = |name: &str| floats(file, &format!("base_model.model.{name}")).1;
        let (a, b, inputs, outputs) = (values(a_name), values(b_name), a_shape[1], b_shape[0]);
        let value = |output: usize, input: usize| -> f64 {
            let product = |k: usize| b[output * 2 * rank + 2 * k + expert] * a[(expert * rank + k) * inputs + input];
            (0..rank).map(product).sum()
        };
        (0..outputs * inputs).map(|at| value(at / inputs, at % inputs)).collect()
    };
    for (at, expert) in [(0, 0), (0, 1), (2, 0), (2, 1)] {
        let own = delta(&source, at, 2, expert);
        for (got, own) in delta(&file, at, 4, expert).iter().zip(own) {
            let want = own * (4.0 / 2.0 - 3.0 / 2.0);
            assert!((got - want).abs() <= 1e-5 * own.abs().max(1.0), "{at} {expert}: {got} {want}");
        }
    }
    // A factor of one of them says that it matters which is which.
    let apart = open("apart", json!({"alpha_pattern": {"up_proj": 3}}));
    assert!(refused(&[apart], &method("cat")).contains("in which order the module declares them"));
}

/// What the user says of the base is said back where nothing comes of it.
#[test]
fn a_residual_that_no_adapter_left_is_said_to_be_none() {
    let folder = Folder::new();
    let mut options = method("exact");
    options.read.base_is_residual = true;
    let says = |init: Value| {
        let adapter = written(&folder, "one", json!({"init_lora_weights": init}), &Q).unwrap();
        made(&[adapter], &options).1.warnings.iter().any(|warning| warning.contains("--base-is-residual"))
    };
    assert!(says(json!(true)) && says(json!("gaussian")));
    assert!(!says(json!("pissa_niter_4")) && !says(json!("olora")));
}

#[test]
fn biases_of_b_are_added_and_targets_are_united() {
    let folder = Folder::new();
    let bias: (&str, &[usize], f32) = ("x.q.lora_B.bias", &[5], 1.0);
    let one = written(&folder, "one", json!({"lora_bias": true}), &[Q[0], Q[1], bias]).unwrap();
    let more = [("y.k.lora_A.weight", &[2, 6][..], 1.0), ("y.k.lora_B.weight", &[5, 2], 1.0)];
    let fields = json!({"target_modules": ["k", "q"], "layers_to_transform": [0]});
    let mut two = written(&folder, "two", fields, &[&Q[..], &more].concat()).unwrap();
    two.weight = -3.0;
    let (out, _) = made(&[one, two], &method("linear"));
    let tensors = Checkpoint::open_weights(&out.join("out/adapter_model.safetensors")).unwrap();
    // Scaled by alpha / r, as the product is.
    assert_eq!(floats(&tensors, "base_model.model.x.q.lora_B.bias").1, [2.0, 4.0, 10.0, 6.0, 6.0]);
    assert_eq!(floats(&tensors, "base_model.model.y.k.lora_B.bias").1, [0.0; 5]);
    let config = config(&out.join("out"));
    // One has a rule on layers, so paths stand in place of rules.
    assert_eq!((&config["target_modules"], &config["layers_to_transform"]), (&json!(["x.q", "y.k"]), &Value::Null));
    assert_eq!(config["lora_bias"], true);
}
