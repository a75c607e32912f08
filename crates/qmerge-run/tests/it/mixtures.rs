//! A mixture is calibrated expert by expert: what its experts are given decides how they are rounded, whether each is stored by itself or all are stacked.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qmerge::adapters::Adapter;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Data, Inputs, Method, Options as PlanOptions, Plan};
use qmerge::progress::Silent;
use qmerge::report::Report;
use qmerge::round;
use qmerge_run::calibrate::{self, Amount, FromModel};
use qmerge_run::tensors::Tensors;
use qmerge_run::text::Beginnings;
use qmerge_run::{Model, Options, Unwatched};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};

fn tiny(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny").join(case)
}

/// Values in f32.
fn values(tensor: &TensorView<'_>) -> Vec<f32> {
    match tensor.dtype() {
        Dtype::F32 => tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::BF16 => {
            let wide = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes(b.try_into().unwrap())) << 16);
            tensor.data().chunks_exact(2).map(wide).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// The base with its values cut to bf16, since there is nothing to choose in 32 bits; with its experts stacked or as they are.
fn base(from: &Path, to: &Path, stacked: bool) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let mut tensors: HashMap<String, (Vec<usize>, Vec<f32>)> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, tensor)| (name.to_owned(), (tensor.shape().to_vec(), values(&tensor))))
        .collect();
    for layer in (0..9).filter(|_| stacked) {
        let path = format!("model.layers.{layer}.block_sparse_moe.experts");
        for (stack, parts) in [("gate_up_proj", &["w1", "w3"][..]), ("down_proj", &["w2"])] {
            let (mut all, mut experts, mut cols) = (Vec::new(), 0, 0);
            while tensors.contains_key(&format!("{path}.{experts}.{}.weight", parts[0])) {
                for part in parts {
                    let (shape, values) = tensors.remove(&format!("{path}.{experts}.{part}.weight")).unwrap();
                    all.extend(values);
                    cols = shape[1];
                }
                experts += 1;
            }
            if experts > 0 {
                tensors.insert(format!("{path}.{stack}"), (vec![experts, all.len() / experts / cols, cols], all));
            }
        }
    }
    let cut = |x: &f32| ((x.to_bits() >> 16) as u16).to_le_bytes();
    let stored: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, (shape, values))| (name, shape, values.iter().flat_map(cut).collect()))
        .collect();
    let views =
        stored.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
}

/// Logits of some tokens, in windows.
fn logits(inputs: &Inputs, plan: Option<&Plan>, tokens: &[u32]) -> Vec<f32> {
    let model = Model::new(&Tensors::new(inputs, plan), Options::default()).unwrap();
    let sequences: Vec<&[u32]> = tokens.chunks(24).collect();
    let hidden = model.hidden(&sequences, &mut Unwatched).unwrap();
    let mut logits = Vec::new();
    model.logits(&hidden, 0..tokens.len(), &mut logits).unwrap();
    logits
}

/// The report of a merge, and the squared distance of its logits from the adapter's kept apart, of the median token: a few go to other experts.
fn merged(base: &Path, adapter: &Path, rounding: &str, text: &[u32], held: &[u32]) -> (Report, f64) {
    let inputs = Inputs::new(Checkpoint::open(base).unwrap(), vec![Adapter::open(adapter, 1.0).unwrap()]).unwrap();
    let method = round::ROUNDINGS.iter().find(|method| method.id() == rounding).unwrap();
    let known = Data::Known(Arc::new(calibrate::weights(&inputs).unwrap()));
    let options = PlanOptions { rounding: Method::Named(*method), data: known, ..PlanOptions::default() };
    let plan = Plan::new(&inputs, &options).unwrap();
    let model = Model::new(&Tensors::new(&inputs, Some(&plan)), Options::default()).unwrap();
    let mut calibration =
        FromModel::text(&model, text, &Beginnings::default(), Path::new("text"), Amount::Usual).unwrap();
    let output = base.with_file_name(format!("{}-{rounding}", base.file_name().unwrap().to_string_lossy()));
    let calibrated = method.whole().is_some();
    let report = merge::run(
        &inputs,
        &plan,
        if calibrated { Some(&mut calibration) } else { None },
        &output,
        &RunOptions { threads: 2, ..RunOptions::default() },
        &Silent,
    )
    .unwrap();
    let apart = logits(&inputs, Some(&plan), held);
    let merged = logits(&Inputs::new(Checkpoint::open(&output).unwrap(), Vec::new()).unwrap(), None, held);
    let squares: Vec<f64> = apart.iter().zip(&merged).map(|(a, b)| f64::from(a - b) * f64::from(a - b)).collect();
    let of_token = |t: usize| squares.iter().skip(t).step_by(held.len()).sum::<f64>();
    let mut errors: Vec<f64> = (0..held.len()).map(of_token).collect();
    errors.sort_by(f64::total_cmp);
    (report, errors[held.len() / 2])
}

/// Numbers that look random.
fn tokens(count: usize, vocab: u32, mut state: u32) -> Vec<u32> {
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocab
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn calibrated_experts_keep_more_than_drawn_ones() {
    let folder = std::env::temp_dir().join(format!("qmerge-mixtures-{}", std::process::id()));
    let (text, held) = (tokens(1200, 48, 1), tokens(240, 48, 2));
    let mut said = Vec::new();
    for stacked in [false, true] {
        let own = folder.join(if stacked { "stacked" } else { "each" });
        base(&tiny("mixtral"), &own, stacked);
        let adapter = tiny("mixtral_lora").join("adapter");
        let (report, calibrated) = merged(&own, &adapter, "adapter", &text, &held);
        let (_, drawn) = merged(&own, &adapter, "stochastic", &text, &held);
        assert!(calibrated < 0.7 * drawn, "stacked {stacked}: {calibrated:e}, drawn {drawn:e}");
        let experts: Vec<_> = report.weights.iter().filter(|weight| weight.name.contains("experts")).collect();
        assert_eq!(experts.len(), if stacked { 4 } else { 24 });
        for weight in experts {
            assert_eq!(weight.rounding, "adapter", "{}", weight.name);
            let kept = weight.kept_output.unwrap();
            assert!((kept - 1.0).abs() < 0.05, "{}: {kept}", weight.name);
        }
        said.push(report.rounding.calibration.unwrap());
    }
    // The same tokens went to the same experts.
    assert_eq!(said[0], said[1]);
    assert!(said[0].contains("each of 8 experts was given "), "{}", said[0]);
    std::fs::remove_dir_all(folder).unwrap();
}
