//! Merges into a format that has all that makes formats hard.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype as StDtype, TensorView};

use super::RunOptions;
use super::schedule::{CHUNK_ELEMENTS, rows_per_chunk};
use crate::adapters::Adapter;
use crate::edited::Edited;
use crate::error::Result;
use crate::formats::Reader;
use crate::formats::toy::code;
use crate::formats::{Claim, float_bytes};
use crate::open::Checkpoint;
use crate::plan::{Action, Data, Inputs, Method, Options, Plan};
use crate::progress::Silent;
use crate::round::{self, Calibration, Detail, InputMoments, Known, Take};

const GROUP: usize = 8;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny-llama").join(name)
}

/// The bf16 model with its linear layers in the toy format. One that is named has no number for the offset of its second group and sixth output.
fn base(folder: &Path, damaged: Option<&str>) -> Checkpoint {
    let plain = Checkpoint::open(&testdata("bases/base-bf16")).unwrap();
    let inventory = crate::formats::inventory(&plain).unwrap();
    let mut tensors: Vec<(String, StDtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for claim in &inventory.weights {
        let (name, shape) = (claim.weight.name().to_owned(), claim.weight.shape().to_vec());
        let mut values = Vec::new();
        Reader::new(&plain, claim).unwrap().rows(&(0..claim.weight.geometry().rows), &mut values).unwrap();
        let Some(module) = name.strip_suffix("_proj.weight") else {
            let bytes = plain.read_small(&claim.entries[0], u64::MAX).unwrap();
            tensors.push((name, StDtype::BF16, shape, bytes));
            continue;
        };
        let (outputs, inputs) = (shape[0], shape[1]);
        let count = inputs / GROUP;
        // 7 and the number of groups have no common divisor, so that every group has as many inputs.
        let groups: Vec<u32> = (0..inputs).map(|i| (i * 7 % count) as u32).collect();
        let (mut low, mut high) = (vec![f32::MAX; count * outputs], vec![f32::MIN; count * outputs]);
        for (k, &x) in values.iter().enumerate() {
            let at = groups[k % inputs] as usize * outputs + k / inputs;
            (low[at], high[at]) = (low[at].min(x), high[at].max(x));
        }
        let scales: Vec<f32> = low.iter().zip(&high).map(|(low, high)| (high - low) / 15.0).collect();
        let mut codes = vec![0; values.len()];
        for (k, &x) in values.iter().enumerate() {
            let at = groups[k % inputs] as usize * outputs + k / inputs;
            codes[k % inputs * outputs + k / inputs] = code(x, scales[at], low[at]);
        }
        if damaged == Some(&name) {
            low[outputs + 5] = f32::NAN;
        }
        let of = |leaf: &str| format!("{module}_proj.toy_{leaf}");
        tensors.push((of("codes"), StDtype::U8, vec![inputs, outputs], codes));
        tensors.push((of("scales"), StDtype::F32, vec![count, outputs], float_bytes(&scales)));
        tensors.push((of("offsets"), StDtype::F32, vec![count, outputs], float_bytes(&low)));
        let groups = groups.iter().flat_map(|group| group.to_le_bytes()).collect();
        tensors.push((of("g_idx"), StDtype::I32, vec![inputs], groups));
    }
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::copy(testdata("bases/base-bf16/config.json"), folder.join("config.json")).unwrap();
    Checkpoint::open(folder).unwrap()
}

/// Moments of inputs that go together, the same for all of a width.
fn moments(features: usize) -> InputMoments {
    let x = |t: usize, i: usize| {
        (((t * 31 + i * 17) * 7919 % 1009) as f32 / 504.5 - 1.0) + if t.is_multiple_of(3) { 1.0 } else { 0.0 }
    };
    let tokens = 3 * features;
    let value = |at: usize| {
        (0..tokens).map(|t| f64::from(x(t, at / features)) * f64::from(x(t, at % features))).sum::<f64>()
            / tokens as f64
    };
    InputMoments { features, tokens, values: (0..features * features).map(|at| value(at) as f32).collect() }
}

/// Each weight's inputs, one after the other.
struct Made(Vec<(String, usize)>);

impl Calibration for Made {
    fn about(&self) -> String {
        "made up".into()
    }

    fn identity(&self) -> Result<String> {
        Ok(String::new())
    }

    fn each(&mut self, wanted: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> Result<()> {
        for (name, features) in self.0.iter().filter(|(name, _)| wanted(name)) {
            take.known(Known { weights: vec![name.clone()], moments: moments(*features), detail: Detail::Full })?;
            take.layer()?;
        }
        Ok(())
    }
}

/// A weight of many inputs comes in chunks of as many rows as are rounded in the time of one, and in smaller ones where memory is short.
#[test]
fn rows_that_are_rounded_together_come_together() {
    let folder = std::env::temp_dir().join(format!("qmerge-wide-{}", std::process::id()));
    let (rows, cols, rank) = (80, 3000, 2);
    let write = |at: &str, tensors: &[(&str, [usize; 2])]| {
        let path = folder.join(at);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let bytes = vec![0; 4 * rows.max(rank) * cols];
        let views = tensors.iter().map(|(name, shape)| {
            let view = TensorView::new(StDtype::F32, shape.to_vec(), &bytes[..4 * shape[0] * shape[1]]);
            (*name, view.unwrap())
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
    };
    let module = "model.layers.0.mlp.down_proj";
    let [weight, a, b] = ["", "base_model.model.", "base_model.model."].map(|before| format!("{before}{module}"));
    let (weight, a, b) = (weight + ".weight", a + ".lora_A.weight", b + ".lora_B.weight");
    write("base/model.safetensors", &[(&weight, [rows, cols])]);
    write("adapter/adapter_model.safetensors", &[(&a, [rank, cols]), (&b, [rows, rank])]);
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["down_proj"]}"#;
    std::fs::write(folder.join("adapter/adapter_config.json"), config).unwrap();
    let adapter = Adapter::open(&folder.join("adapter"), 1.0).unwrap();
    let base = Checkpoint::open(&folder.join("base/model.safetensors")).unwrap();
    let inputs = Inputs::new(base, vec![adapter]).unwrap();
    for (method, elements, wanted) in
        [("feedback", CHUNK_ELEMENTS, 32), ("feedback", CHUNK_ELEMENTS / 8, 4), ("nearest", CHUNK_ELEMENTS, 8)]
    {
        let (rounding, to) =
            (Method::Named(round::by_id(method).unwrap()), Some(crate::formats::by_id("bf16").unwrap()));
        let plan = Plan::new(&inputs, &Options { rounding, to, ..Options::default() }).unwrap();
        let chunks: Vec<usize> = plan.recodes().map(|recode| rows_per_chunk(recode, elements)).collect();
        assert_eq!(chunks, [wanted], "{method} {elements}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// What is told of a damaged value is where it is stored, whatever the order that it was rounded in.
#[test]
fn a_value_that_is_not_finite_is_named_where_it_is_stored() {
    let folder = std::env::temp_dir().join(format!("qmerge-toy-damaged-{}", std::process::id()));
    let name = "model.layers.0.self_attn.q_proj.weight";
    let adapter = Adapter::open(&testdata("adapters/plain"), 1.0).unwrap();
    let inputs = Inputs::new(base(&folder.join("base"), Some(name)), vec![adapter]).unwrap();
    let claim = inputs.inventory.weights.iter().find(|claim| claim.weight.name() == name).unwrap();
    let features = claim.weight.shape()[1];
    // The first input of the second group.
    let input = (0..features).find(|i| i * 7 % (features / GROUP) == 1).unwrap();
    for method in ["descent", "stochastic"] {
        let data = Data::Known(Arc::new([name.to_owned()].into()));
        let options = Options { rounding: Method::Named(round::by_id(method).unwrap()), data, ..Options::default() };
        let plan = Plan::new(&inputs, &options).unwrap();
        let mut calibration = Made(vec![(name.to_owned(), features)]);
        let output = folder.join(method);
        let error = super::run(&inputs, &plan, Some(&mut calibration), &output, &RunOptions::default(), &Silent);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(&format!("[{input}, 5]")), "{method}: {error}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn every_method_rounds_a_weight_that_is_stored_in_another_order() {
    let folder = std::env::temp_dir().join(format!("qmerge-toy-{}", std::process::id()));
    let adapter = Adapter::open(&testdata("adapters/plain"), 1.0).unwrap();
    let inputs = Inputs::new(base(&folder.join("base"), None), vec![adapter]).unwrap();
    let toys: Vec<_> = inputs.inventory.weights.iter().filter(|claim| claim.weight.format() == "toy").collect();
    assert!(toys.len() >= 14, "{}", toys.len());
    let names: Vec<(String, usize)> =
        toys.iter().map(|claim| (claim.weight.name().to_owned(), claim.weight.shape()[1])).collect();
    let known = Data::Known(Arc::new(names.iter().map(|(name, _)| name.clone()).collect()));
    for method in round::ROUNDINGS.iter().filter(|method| !method.needs_original()) {
        let options = Options { rounding: Method::Named(*method), data: known.clone(), ..Options::default() };
        let plan = Plan::new(&inputs, &options).unwrap();
        let output = folder.join(method.id());
        let mut calibration = Made(names.clone());
        let report =
            super::run(&inputs, &plan, Some(&mut calibration), &output, &RunOptions::default(), &Silent).unwrap();
        let merged = Checkpoint::open(&output).unwrap();
        let written = crate::formats::inventory(&merged).unwrap();
        let mut edited = 0;
        for step in &plan.steps {
            let Action::Recode(recode) = &step.action else { continue };
            let claim = written.weights.iter().find(|claim| claim.weight.name() == step.name).unwrap();
            assert_eq!(claim.weight.format(), "toy", "{}", method.id());
            let index =
                |checkpoint: &Checkpoint, claim: &Claim| checkpoint.read_small(&claim.entries[3], 1 << 20).unwrap();
            assert_eq!(index(&merged, claim), index(&inputs.base, &recode.from), "{}", method.id());
            let all = 0..recode.from.weight.geometry().rows;
            let (mut before, mut wanted, mut after) = (Vec::new(), Vec::new(), Vec::new());
            Edited::new(&inputs, recode).unwrap().rows(&all, &mut before, &mut wanted).unwrap();
            Reader::new(&merged, claim).unwrap().rows(&all, &mut after).unwrap();
            // Stored (in, out): what the report says of the outputs is what f64 says of them.
            let (n, m) = (recode.inputs(), recode.outputs());
            let h = moments(n).values;
            let product = |x: &dyn Fn(usize) -> f64, y: &dyn Fn(usize) -> f64| -> f64 {
                let row = |o: usize| -> f64 {
                    (0..n)
                        .map(|i| x(i * m + o) * (0..n).map(|j| f64::from(h[i * n + j]) * y(j * m + o)).sum::<f64>())
                        .sum()
                };
                (0..m).map(row).sum()
            };
            let delta = |k: usize| f64::from(wanted[k]) - f64::from(before[k]);
            let change = |k: usize| f64::from(after[k]) - f64::from(before[k]);
            let of = report.weights.iter().find(|weight| weight.name == step.name).unwrap();
            // Rows that are inputs have no directions of theirs: what takes over is named.
            let taken = if method.goes_by_directions() { round::WITHOUT_DATA } else { *method };
            assert_eq!(of.rounding, taken.id(), "{}", step.name);
            if method.whole().is_some() {
                let output = product(&change, &delta) / product(&delta, &delta);
                assert!(
                    (output - of.kept_output.unwrap()).abs() < 0.05,
                    "{} {}: {output} {of:?}",
                    method.id(),
                    step.name
                );
                // Methods other than the adapter's lower the error that leaving the base would have.
                let error = |k: usize| f64::from(after[k]) - f64::from(wanted[k]);
                let noise = product(&error, &error) / product(&delta, &delta);
                assert!(method.id() == "adapter" || noise < 1.05, "{} {}: {noise}", method.id(), step.name);
                edited += 1;
            } else {
                // Under the base's scales, or those that were chosen afresh, every value is one of the two that it lies between.
                let (checkpoint, claim) =
                    if method.keeps_scales() { (&inputs.base, &recode.from) } else { (&merged, claim) };
                let grid = Reader::new(checkpoint, claim).unwrap().grid(&all).unwrap().unwrap();
                for (k, (&after, &wanted)) in after.iter().zip(&wanted).enumerate() {
                    let (low, high) = grid.around(k, wanted);
                    let on = [low, high].iter().any(|x| (x - after).abs() < 1e-6);
                    assert!(on, "{} {} {k}: {after}, not {low} or {high}", method.id(), step.name);
                }
            }
        }
        assert!(method.whole().is_none() || edited >= 2, "{}: {edited}", method.id());
    }
    std::fs::remove_dir_all(folder).unwrap();
}
