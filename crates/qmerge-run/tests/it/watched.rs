//! What a calibration is shown of linear layers is what it was told beforehand.

use std::ops::ControlFlow;
use std::path::Path;

use qmerge::error::Result;
use qmerge::open::Checkpoint;
use qmerge::plan::Inputs;
use qmerge_run::linear::{Input, Watch};
use qmerge_run::tensors::Tensors;
use qmerge_run::{Model, Options};

/// The weights of each input that was shown, layer by layer.
#[derive(Default)]
struct Shown(Vec<Vec<Vec<String>>>, Vec<Vec<String>>);

impl Watch for Shown {
    fn input(&mut self, paths: &[&str], _: &Input<'_>) -> Result<()> {
        if !paths.is_empty() {
            self.1.push(paths.iter().map(|path| format!("{path}.weight")).collect());
        }
        Ok(())
    }

    fn layer(&mut self) -> Result<ControlFlow<()>> {
        self.0.push(std::mem::take(&mut self.1));
        Ok(ControlFlow::Continue(()))
    }
}

fn open(case: &str) -> Inputs {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny").join(case);
    Inputs::new(Checkpoint::open(&path).unwrap(), Vec::new()).unwrap()
}

#[test]
fn inputs_are_shown_as_they_were_told() {
    for case in ["llama", "phi3", "cohere", "falcon", "falcon_new", "gpt_neox", "stablelm_parallel", "lfm2"] {
        let inputs = open(case);
        let model =
            Model::new(&Tensors::new(&inputs, None), Options { threads: 1, held: Some(0), progress: None }).unwrap();
        let mut shown = Shown::default();
        model.hidden(&[&[1, 2, 3]], &mut shown).unwrap();
        let told = model.inputs().into_iter().map(|layer| layer.into_iter().map(|inputs| inputs.weights).collect());
        assert_eq!(shown.0, told.collect::<Vec<Vec<Vec<String>>>>(), "{case}");
    }
}

/// Blocks side by side behind one norm have one input. The mixer's layers are shown it by token, so there are two matrices of moments.
#[test]
fn blocks_that_share_a_norm_share_their_input() {
    for (case, shared) in
        [("cohere", [2, 3]), ("phi", [1, 3]), ("falcon", [1, 1]), ("gpt_neox", [1, 1]), ("stablelm", [3, 1])]
    {
        let inputs = open(case);
        let model =
            Model::new(&Tensors::new(&inputs, None), Options { threads: 1, held: Some(0), progress: None }).unwrap();
        let counts: Vec<usize> = model.inputs()[0].iter().map(|inputs| inputs.weights.len()).take(2).collect();
        assert_eq!(counts, shared, "{case}");
    }
}

/// What layers are shown of each column, by its square, layer by layer; with their last names.
#[derive(Default)]
struct Squares {
    weighs: bool,
    layers: Vec<Vec<(String, Vec<f64>)>>,
    layer: Vec<(String, Vec<f64>)>,
}

impl Watch for Squares {
    fn input(&mut self, paths: &[&str], input: &Input<'_>) -> Result<()> {
        let mut squares = vec![0.0; input.tokens()];
        for row in input.values().chunks_exact(input.tokens()) {
            squares.iter_mut().zip(row).for_each(|(square, &x)| *square += f64::from(x) * f64::from(x));
        }
        let last = |path: &&str| path.rsplit('.').next().unwrap_or_default().to_owned();
        self.layer.push((paths.iter().map(last).collect::<Vec<_>>().join(" "), squares));
        Ok(())
    }

    fn weighs(&self) -> bool {
        self.weighs
    }

    fn layer(&mut self) -> Result<ControlFlow<()>> {
        self.layers.push(std::mem::take(&mut self.layer));
        Ok(ControlFlow::Continue(()))
    }
}

/// What is made into queries, keys and values, also by way of narrow vectors.
const ATTENDED: &[&str] = &[
    "q_proj k_proj v_proj",
    "q_proj kv_a_proj_with_mqa",
    "q_a_proj kv_a_proj_with_mqa",
    "q_b_proj",
    "kv_b_proj",
    "qkv_proj",
    "query_key_value",
    "c_attn",
];

/// What transformers' attention pays to each token (`testdata/gen/paid.py`) is by how much its square is larger where queries, keys and values are made of it, and
/// nowhere else.
#[test]
fn attention_is_shown_what_it_pays() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let paid = std::fs::read(root.join("paid.json")).unwrap();
    let paid: std::collections::BTreeMap<String, Vec<Vec<f64>>> = serde_json::from_slice(&paid).unwrap();
    assert!(paid.len() > 10);
    let mut seen = std::collections::BTreeSet::new();
    for (case, layers) in paid {
        let inputs = open(&case);
        let options = Options { threads: 1, held: Some(0), progress: None };
        let model = Model::new(&Tensors::new(&inputs, None), options).unwrap();
        let sequences = super::logits::expected(&root.join("tiny").join(&case).join("logits.safetensors")).sequences;
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let shown = |weighs| {
            let mut shown = Squares { weighs, ..Squares::default() };
            model.hidden(&sequences, &mut shown).unwrap();
            shown.layers
        };
        let (plain, weighed) = (shown(false), shown(true));
        assert_eq!((plain.len(), weighed.len()), (layers.len(), layers.len()), "{case}");
        for ((plain, weighed), paid) in plain.iter().zip(&weighed).zip(&layers) {
            assert_eq!(plain.len(), weighed.len(), "{case}");
            for ((names, plain), (others, weighed)) in plain.iter().zip(weighed) {
                assert_eq!(names, others, "{case}");
                if !ATTENDED.contains(&names.as_str()) {
                    assert_eq!(plain, weighed, "{case} {names}");
                    continue;
                }
                seen.insert(names.clone());
                for ((weighed, plain), paid) in weighed.iter().zip(plain).zip(paid) {
                    let (found, wanted) = (weighed / plain, 0.5 + 0.5 * paid);
                    assert!(
                        (found - wanted).abs() < 1e-4 * wanted.max(1.0),
                        "{case} {names}: {found} and not {wanted}"
                    );
                }
            }
        }
    }
    assert_eq!(seen.len(), ATTENDED.len(), "{seen:?}");
}
