//! Merges into every format of quantized checkpoints by every rounding method: a small llama, stored in the format by its own writer (which tests/it/quantized holds to
//! the reference's bytes).

mod kinds;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qmerge::adapters::Adapter;
use qmerge::edited::Edited;
use qmerge::formats::{self, Claim, Reader, Settled};
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Action, Data, Inputs, Method, Options, Plan};
use qmerge::progress::Silent;
use qmerge::round::{self, InputMoments};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::calibrated::Given;
use crate::written::{self, Tensor};
use kinds::{Kind, kinds};

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny-llama").join(name)
}

fn save(folder: &Path, tensors: &[Tensor], config: &Value) -> Checkpoint {
    written::model(folder, config, tensors);
    Checkpoint::open(folder).unwrap()
}

/// The small llama with its linear layers stored so.
fn base(folder: &Path, kind: &Kind) -> Checkpoint {
    let plain = Checkpoint::open(&testdata("bases/base-bf16")).unwrap();
    let inventory = formats::inventory(&plain).unwrap();
    let text = std::fs::read_to_string(testdata("bases/base-bf16/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config.as_object_mut().unwrap().extend(kind.config.as_object().unwrap().clone());
    let (mut tensors, mut wanted) = (Vec::new(), HashMap::new());
    for claim in &inventory.weights {
        let (name, shape) = (claim.weight.name().to_owned(), claim.weight.shape().to_vec());
        match name.strip_suffix("_proj.weight") {
            None => tensors.push((name, Dtype::BF16, shape, plain.read_small(&claim.entries[0], u64::MAX).unwrap())),
            Some(module) => {
                let named = (kind.tensors)(shape[0], shape[1]).into_iter();
                tensors.extend(
                    named.map(|(leaf, dtype, shape, bytes)| (format!("{module}_proj.{leaf}"), dtype, shape, bytes)),
                );
                let mut values = Vec::new();
                Reader::new(&plain, claim).unwrap().rows(&(0..shape[0]), &mut values).unwrap();
                wanted.insert(name, values);
            }
        }
    }
    let blank = save(&folder.join("blank"), &tensors, &config);
    for claim in formats::inventory(&blank).unwrap().weights.iter().filter(|claim| !claim.weight.is_plain()) {
        let weight = &claim.weight;
        let (geometry, mut values) = (weight.geometry(), wanted.remove(weight.name()).unwrap());
        let all = 0..geometry.rows;
        if weight.is_transposed() {
            let at = |at: usize| values[at % geometry.cols * geometry.rows + at / geometry.cols];
            values = (0..values.len()).map(at).collect();
        }
        let stored: Vec<Option<Vec<u8>>> = (claim.entries.iter())
            .map(|entry| {
                let bytes = blank.read_small(entry, u64::MAX).unwrap();
                let may_be_0 =
                    ["_weight_zero_point", "input_scale", "axis"].iter().any(|end| entry.name.ends_with(end));
                (may_be_0 || bytes.iter().any(|&byte| byte != 0)).then_some(bytes)
            })
            .collect();
        let mut held = Vec::new();
        let writer = weight.writer().unwrap();
        writer.survey(all.clone(), &values, &mut held);
        let Settled { weight, parts } = writer.settle(&held, &stored);
        let mut encoded = vec![Vec::new(); parts.len()];
        weight.writer().unwrap().encode(&parts, all, &values, &mut encoded);
        for (entry, bytes) in
            claim.entries.iter().zip(parts.into_iter().zip(encoded).map(|(part, own)| part.unwrap_or(own)))
        {
            tensors.iter_mut().find(|(name, ..)| *name == entry.name).unwrap().3 = bytes;
        }
    }
    assert!(wanted.is_empty(), "{}", kind.name);
    save(&folder.join("base"), &tensors, &config)
}

/// Moments of inputs that go together, the same for all of a width.
fn moments(features: usize) -> InputMoments {
    let x = |t: usize, i: usize| {
        (((t * 31 + i * 17) * 7919 % 1009) as f32 / 504.5 - 1.0) + if t.is_multiple_of(3) { 1.0 } else { 0.0 }
    };
    let tokens = 3 * features;
    let value = |at: usize| {
        let products = (0..tokens).map(|t| f64::from(x(t, at / features)) * f64::from(x(t, at % features)));
        (products.sum::<f64>() / tokens as f64) as f32
    };
    InputMoments { features, tokens, values: (0..features * features).map(value).collect() }
}

fn parts(checkpoint: &Checkpoint, claim: &Claim) -> Vec<Vec<u8>> {
    claim.entries.iter().map(|entry| checkpoint.read_small(entry, u64::MAX).unwrap()).collect()
}

fn values(checkpoint: &Checkpoint, claim: &Claim) -> Vec<f32> {
    let mut values = Vec::new();
    Reader::new(checkpoint, claim).unwrap().rows(&(0..claim.weight.geometry().rows), &mut values).unwrap();
    values
}

#[test]
fn every_method_rounds_every_format() {
    let root = std::env::temp_dir().join(format!("qmerge-formats-{}", std::process::id()));
    let known: HashMap<usize, InputMoments> = [64, 128].map(|n| (n, moments(n))).into();
    let mut failed = Vec::new();
    for (number, (format, kind)) in kinds().iter().enumerate() {
        let folder = root.join(number.to_string());
        // Two layers' projections alone: the others keep their bytes.
        let adapter = Adapter::open(&testdata("adapters/plain"), 1.0).unwrap();
        let inputs = Inputs::new(base(&folder, kind), vec![adapter]).unwrap();
        let coded: Vec<_> = inputs.inventory.weights.iter().filter(|claim| !claim.weight.is_plain()).collect();
        assert!(
            coded.len() == 14 && coded.iter().all(|claim| claim.weight.format() == *format),
            "{format} {}",
            kind.name
        );
        let names: Vec<(String, usize)> =
            coded.iter().map(|claim| (claim.weight.name().to_owned(), claim.weight.shape()[1])).collect();
        let data = Data::Known(Arc::new(names.iter().map(|(name, _)| name.clone()).collect()));
        for method in round::ROUNDINGS.iter().filter(|method| !method.needs_original()) {
            let title = format!("{format} {} {}", kind.name, method.id());
            let options = Options { rounding: Method::Named(*method), data: data.clone(), ..Options::default() };
            let plan = Plan::new(&inputs, &options).unwrap();
            let run = |threads: usize, max_memory: Option<u64>| {
                let output = folder.join(format!("{}-{threads}", method.id()));
                let options = RunOptions { threads, max_memory, ..RunOptions::default() };
                // Each weight's inputs, one after the other.
                let layers = names.iter().map(|(name, features)| vec![(name.as_str(), &known[features])]);
                let mut calibration = Given(layers.collect());
                let report = merge::run(&inputs, &plan, Some(&mut calibration), &output, &options, &Silent);
                (report.unwrap_or_else(|error| panic!("{title}: {error}")), output)
            };
            let (report, output) = run(1, None);
            let (_, other) = run(3, Some(32 << 20));
            let bytes = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
            assert!(bytes(&output) == bytes(&other), "{title}: other bytes on three threads");
            let merged = Checkpoint::open(&output).unwrap();
            let written = formats::inventory(&merged).unwrap();
            for step in &plan.steps {
                let Action::Recode(recode) = &step.action else { continue };
                let claim = written.weights.iter().find(|claim| claim.weight.name() == step.name).unwrap();
                assert!(
                    claim.weight.format() == *format && claim.weight.details() == recode.from.weight.details(),
                    "{title}"
                );
                let all = 0..recode.from.weight.geometry().rows;
                let (mut before, mut wanted) = (Vec::new(), Vec::new());
                Edited::new(&inputs, recode).unwrap().rows(&all, &mut before, &mut wanted).unwrap();
                let after = values(&merged, claim);
                let of = report.weights.iter().find(|weight| weight.name == step.name).unwrap();
                let (own, now) = (parts(&inputs.base, &recode.from), parts(&merged, claim));
                for (at, entry) in claim.entries.iter().enumerate() {
                    let stays = ["g_idx", "shape", "input_scale", "nbits", "packing"]
                        .iter()
                        .any(|end| entry.name.ends_with(end))
                        || method.keeps_scales()
                            && ["zero_point", "qzeros", "global_scale"].iter().any(|end| entry.name.ends_with(end));
                    assert!(!stays || own[at] == now[at], "{title}: {} changed", entry.name);
                }
                if method.whole().is_some() {
                    // What the method says of itself: it keeps some of the adapter's output, and not at the price of more noise.
                    let kept = of.kept_output.unwrap();
                    if !(0.3..1.7).contains(&kept) {
                        failed.push(format!("{title} {}: kept {kept}", step.name));
                    }
                    continue;
                }
                // Under the base's scales, or those that were chosen afresh, every value is one of the two that it lies between.
                let (claim, bytes) = if method.keeps_scales() { (&recode.from, &own) } else { (claim, &now) };
                let views: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
                let grid = claim.weight.on_grid().unwrap().grid(&views, all);
                let mut wrong = 0;
                for (k, (&after, &wanted)) in after.iter().zip(&wanted).enumerate() {
                    let (low, high) = grid.around(k, wanted);
                    wrong += usize::from(low != after && high != after);
                }
                // Fresh codes may be chosen under scales that are then rounded.
                let most = if method.keeps_scales() { 0 } else { after.len() / 50 };
                if wrong > most {
                    failed.push(format!("{title} {}: {wrong} of {} are not on the grid", step.name, after.len()));
                }
            }
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
    std::fs::remove_dir_all(root).unwrap();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// What is said of weights whose rows become columns is what is done: they take the nearest values, whatever was asked for.
#[test]
fn rows_that_become_columns_take_the_nearest_values() {
    let root = std::env::temp_dir().join(format!("qmerge-columns-{}", std::process::id()));
    let (_, kind) = kinds().into_iter().find(|(format, _)| *format == "gptq").unwrap();
    let adapter = Adapter::open(&testdata("adapters/plain"), 1.0).unwrap();
    let inputs = Inputs::new(base(&root, &kind), vec![adapter]).unwrap();
    let stochastic = round::by_id("stochastic").unwrap();
    for method in [Method::Auto, Method::Named(stochastic)] {
        let to = Some(formats::by_id("bf16").unwrap());
        let plan = Plan::new(&inputs, &Options { rounding: method, to, ..Options::default() }).unwrap();
        let turned: Vec<_> = plan.recodes().filter(|recode| recode.turned).collect();
        assert!(turned.len() == 14 && turned.iter().all(|recode| recode.rounding.id() == "nearest"), "{method:?}");
    }
    std::fs::remove_dir_all(root).unwrap();
}

/// Every code that is no number is found where it is stored, and none is written.
#[test]
fn codes_that_are_no_numbers_are_named() {
    let root = std::env::temp_dir().join(format!("qmerge-nan-{}", std::process::id()));
    let name = "model.layers.0.self_attn.q_proj.weight";
    // Four bits have no code for it.
    let has_nan =
        |format: &str, kind: &str| matches!(format, "fp8" | "ct-fp8" | "ct-mxfp8") && kind != "experts of 4 bits";
    for (number, (format, kind)) in kinds().iter().filter(|(format, kind)| has_nan(format, kind.name)).enumerate() {
        let folder = root.join(number.to_string());
        let sound = base(&folder, kind);
        let entry = sound.get(name).unwrap();
        let row = sound.read_small(entry, u64::MAX).unwrap()[3 * 64..4 * 64].to_vec();
        let mut file = std::fs::read(folder.join("base/model.safetensors")).unwrap();
        let start = file.windows(64).position(|window| window == row).unwrap();
        file[start + 5] = 0xff;
        std::fs::write(folder.join("base/model.safetensors"), file).unwrap();
        let adapter = Adapter::open(&testdata("adapters/plain"), 1.0).unwrap();
        let inputs = Inputs::new(Checkpoint::open(&folder.join("base")).unwrap(), vec![adapter]).unwrap();
        for method in ["nearest", "stochastic", "keep"] {
            let options = Options { rounding: Method::Named(round::by_id(method).unwrap()), ..Options::default() };
            let plan = Plan::new(&inputs, &options).unwrap();
            let output = folder.join(method);
            let error =
                merge::run(&inputs, &plan, None, &output, &RunOptions::default(), &Silent).unwrap_err().to_string();
            assert!(
                error.contains(name) && error.contains("[3, 5]") && error.contains("NaN"),
                "{format} {method}: {error}"
            );
            assert!(!output.exists());
        }
    }
    std::fs::remove_dir_all(root).unwrap();
}
