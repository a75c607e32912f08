//! Logits of tiny random models against those that transformers and PEFT computed (`testdata/gen/tiny_models.py`).

use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::open::{Checkpoint, ModelConfig};
use qmerge::plan::{Inputs, Options as PlanOptions, Plan};
use qmerge_run::tensors::Tensors;
use qmerge_run::{Cache, Model, Options, Unwatched};

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny")
}

/// Token ids (sequences, length) and logits (sequences, length, vocabulary).
pub(crate) struct Expected {
    pub(crate) sequences: Vec<Vec<u32>>,
    logits: Vec<f32>,
    vocab: usize,
}

pub(crate) fn expected(path: &Path) -> Expected {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (ids, logits) = (file.tensor("input_ids").unwrap(), file.tensor("logits").unwrap());
    let length = ids.shape()[1];
    let ids: Vec<u32> = ids.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect();
    Expected {
        sequences: ids.chunks_exact(length).map(<[u32]>::to_vec).collect(),
        vocab: logits.shape()[2],
        logits: logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
    }
}

/// Largest difference over all positions, both sequences in one batch.
fn difference(model: &Model<'_>, expected: &Expected) -> f32 {
    let sequences: Vec<&[u32]> = expected.sequences.iter().map(Vec::as_slice).collect();
    let hidden = model.hidden(&sequences, &mut Unwatched).unwrap();
    let columns = sequences.iter().map(|s| s.len()).sum();
    let mut logits = Vec::new();
    model.logits(&hidden, 0..columns, &mut logits).unwrap();
    assert_eq!(logits.len(), columns * expected.vocab);
    let mut worst = 0.0_f32;
    for t in 0..columns {
        for v in 0..expected.vocab {
            let difference = (logits[v * columns + t] - expected.logits[t * expected.vocab + v]).abs();
            assert!(!difference.is_nan());
            worst = worst.max(difference);
        }
    }
    worst
}

/// Largest difference of the first sequence's last logits when it goes in by pieces, through the cache.
fn difference_cached(model: &Model<'_>, expected: &Expected) -> f32 {
    let sequence = &expected.sequences[0];
    let mut cache = Cache::new(model, sequence.len());
    let mut worst = 0.0_f32;
    for piece in [0..10, 10..11, 11..sequence.len()] {
        let count = piece.len();
        let hidden = model.advance(&sequence[piece.clone()], &mut cache).unwrap();
        let mut logits = Vec::new();
        model.logits(&hidden, 0..count, &mut logits).unwrap();
        for (i, t) in piece.enumerate() {
            for v in 0..expected.vocab {
                let off = (logits[v * count + i] - expected.logits[t * expected.vocab + v]).abs();
                assert!(off.is_finite());
                worst = worst.max(off);
            }
        }
    }
    worst
}

fn open(case: &Path, adapter: Option<&Path>) -> (Inputs, Option<Plan>) {
    let adapters = adapter.map(|path| Adapter::open(path, 1.0).unwrap()).into_iter().collect();
    let inputs = Inputs::new(Checkpoint::open(case).unwrap(), adapters).unwrap();
    let plan = adapter.map(|_| Plan::new(&inputs, &PlanOptions::default()).unwrap());
    (inputs, plan)
}

/// The folder whose model a case uses.
fn base_of(case: &Path) -> PathBuf {
    match std::fs::read_to_string(case.join("base.txt")) {
        Ok(name) => case.with_file_name(name.trim()),
        Err(_) => case.to_path_buf(),
    }
}

fn cases(file: &str) -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = std::fs::read_dir(tiny()).unwrap().map(|item| item.unwrap().path()).collect();
    cases.retain(|case| case.join(file).is_file());
    cases.sort();
    cases
}

/// In f32, sums in another order than torch's differ by a third of this (`testdata/README.md`).
const TOLERANCE: f32 = 1e-4;

#[test]
fn every_family_agrees_with_transformers() {
    let cases = cases("logits.safetensors");
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let (mut inputs, _) = open(&base_of(case), None);
        let expected = expected(&case.join("logits.safetensors"));
        // Once as transformers 5 spells the configuration, once as version 4 did.
        let old = case.join("config.v4.json");
        for (held, config) in [(0, case.join("config.json")), (u64::MAX, old)] {
            if config.is_file() {
                inputs.base.config = Some(ModelConfig::read(&config).unwrap());
            }
            let model =
                Model::new(&Tensors::new(&inputs, None), Options { threads: 2, held: Some(held), progress: None });
            let model = model.unwrap_or_else(|error| panic!("{name}: {error}"));
            let difference = difference(&model, &expected);
            // A rope that changes with the length of the sequence gives a cache other keys than a fresh start.
            let changing = name.contains("dynamic") || name == "phi3_longrope";
            let cached = if changing { 0.0 } else { difference_cached(&model, &expected) };
            if !(difference <= TOLERANCE && cached <= TOLERANCE) {
                wrong.push(format!("{name}: {difference:e}, cached {cached:e}"));
            }
        }
    }
    assert!(cases.len() >= 66, "only {} cases", cases.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn adapters_kept_apart_agree_with_peft() {
    let cases = cases("apart.safetensors");
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let (inputs, plan) = open(&base_of(case), Some(&case.join("adapter")));
        let expected = expected(&case.join("apart.safetensors"));
        let model =
            Model::new(&Tensors::new(&inputs, plan.as_ref()), Options { threads: 2, held: None, progress: None });
        let model = model.unwrap_or_else(|error| panic!("{name}: {error}"));
        let (difference, cached) = (difference(&model, &expected), difference_cached(&model, &expected));
        if !(difference <= TOLERANCE && cached <= TOLERANCE) {
            wrong.push(format!("{name}: {difference:e}, cached {cached:e}"));
        }
        // The base alone is another model: the adapter does something in every case.
        let base = Model::new(&Tensors::new(&inputs, None), Options::default()).unwrap();
        assert!(self::difference(&base, &expected) > 100.0 * TOLERANCE, "{name}");
    }
    assert!(cases.len() >= 22, "only {} cases", cases.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}
