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
        self.1.push(paths.iter().map(|path| format!("{path}.weight")).collect());
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

/// Blocks side by side behind one norm: one input, so one matrix of moments.
#[test]
fn blocks_that_share_a_norm_share_their_input() {
    for (case, shared) in [("cohere", 5), ("phi", 4), ("falcon", 2), ("gpt_neox", 1), ("stablelm", 3)] {
        let inputs = open(case);
        let model =
            Model::new(&Tensors::new(&inputs, None), Options { threads: 1, held: Some(0), progress: None }).unwrap();
        assert_eq!(model.inputs()[0][0].weights.len(), shared, "{case}");
    }
}
