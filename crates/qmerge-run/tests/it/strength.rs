//! Adapters that are made stronger while a model writes.

use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::error::Result;
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options as PlanOptions, Plan};
use qmerge::round::Calibration;
use qmerge_run::calibrate::{Amount, FromModel};
use qmerge_run::linear::{Input, Manner, Precision, Watch};
use qmerge_run::tensors::Tensors;
use qmerge_run::text::Beginnings;
use qmerge_run::{Model, Options};

const TOKENS: [u32; 6] = [3, 1, 4, 1, 5, 9];

struct At(f32);

impl Watch for At {
    fn input(&mut self, _: &[&str], _: &Input<'_>) -> Result<()> {
        Ok(())
    }

    fn manner(&self) -> Manner {
        Manner { precision: Precision::Full, strength: self.0 }
    }
}

fn open(case: &str, weight: f64) -> (Inputs, Plan) {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny").join(case);
    let base: PathBuf = match std::fs::read_to_string(case.join("base.txt")) {
        Ok(name) => case.with_file_name(name.trim()),
        Err(_) => case.clone(),
    };
    let adapters = vec![Adapter::open(&case.join("adapter"), weight).unwrap()];
    let inputs = Inputs::new(Checkpoint::open(&base).unwrap(), adapters).unwrap();
    let plan = Plan::new(&inputs, &PlanOptions::default()).unwrap();
    (inputs, plan)
}

fn hidden((inputs, plan): (&Inputs, Option<&Plan>), strength: f32) -> Vec<f32> {
    let model = Model::new(&Tensors::new(inputs, plan), Options::default()).unwrap();
    model.hidden(&[&TOKENS], &mut At(strength)).unwrap()
}

fn distance(one: &[f32], other: &[f32]) -> f32 {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut one.iter().zip(other).map(|(x, y)| x - y)) / norm(&mut other.iter().copied())
}

/// PEFT's weight of an adapter is what a strength is, wherever a layer's weight lies: in codes, turned over, as one of many experts.
#[test]
fn a_strength_is_a_weight() {
    for case in [
        "llama_lora",
        "llama_nf4_lora",
        "llama_rslora_patterns",
        "phi3_lora",
        "gpt2_lora",
        "gpt_neox_lora",
        "falcon_new_lora",
        "qwen3_moe_lora",
        "mixtral_lora",
        "mixtral_expert_lora",
        "gemma4_experts_lora",
        "lfm2_lora",
    ] {
        let (inputs, plan) = open(case, 1.0);
        let (twice, plan_of_twice) = open(case, 2.0);
        let as_it_is = hidden((&inputs, Some(&plan)), 1.0);
        let without = hidden((&inputs, None), 1.0);
        let stronger = hidden((&inputs, Some(&plan)), 2.0);
        assert!(distance(&hidden((&inputs, Some(&plan)), 0.0), &without) < 1e-5, "{case}");
        assert!(distance(&stronger, &hidden((&twice, Some(&plan_of_twice)), 1.0)) < 1e-5, "{case}");
        assert!(distance(&as_it_is, &without) > 1e-3 && distance(&as_it_is, &stronger) > 1e-3, "{case}");
    }
}

/// What is written does not depend on how much is written at a time, nor on what is written beside it.
#[test]
fn text_that_shows_an_adapter_is_the_same_however_it_is_written() {
    for (weight, amount, stronger) in [
        (0.2, Amount::Usual, true),
        (0.2, Amount::Few, true),
        (0.2, Amount::Tokens(1 << 10), true),
        (0.0, Amount::Usual, false),
        (20.0, Amount::Usual, false),
    ] {
        let (inputs, plan) = open("llama_lora", weight);
        let model = Model::new(&Tensors::new(&inputs, Some(&plan)), Options::default()).unwrap();
        let written = |together, hold| {
            let beginnings = Beginnings::default();
            let own = FromModel::own_text(&model, &beginnings, 0, (amount, together), hold).unwrap();
            (own.about(), own.identity().unwrap())
        };
        let want = written(64, true);
        assert_eq!(want.0.contains("times as strong"), stronger, "{weight} {amount:?}: {}", want.0);
        for (together, hold) in [(64, false), (33, true), (7, true), (1, false)] {
            assert_eq!(written(together, hold), want, "{weight} {amount:?} {together} {hold}");
        }
    }
}
