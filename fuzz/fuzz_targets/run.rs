//! A model, run: config.json, tensors of the base, adapter_config.json, tensors of the adapter; some tokens at once, and one by one.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use qmerge::error::Result;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge_run::tensors::Tensors;
use qmerge_run::{Cache, Model, Unwatched};

fuzz_target!(|text: &[u8]| -> Corpus {
    let Some(inputs) = qmerge_fuzz::inputs(qmerge_fuzz::parts(text)) else { return Corpus::Reject };
    if let Err(error) = inputs.and_then(|inputs| run(&inputs)) {
        qmerge_fuzz::honest(&error);
    }
    Corpus::Keep
});

fn run(inputs: &Inputs) -> Result<()> {
    let plan = Plan::new(inputs, &Options { allow_unused: true, ..Options::default() })?;
    let options = qmerge_run::Options { threads: 1, held: Some(0), progress: None };
    let model = Model::new(&Tensors::new(inputs, Some(&plan)), options)?;
    let last = model.spec().vocab as u32 - 1;
    let tokens = [0, last, last / 2];
    let hidden = model.hidden(&[&tokens, &tokens[..1]], &mut Unwatched)?;
    let mut logits = Vec::new();
    model.logits(&hidden, 3..4, &mut logits)?;
    assert_eq!(logits.len(), model.spec().vocab);
    let mut cache = Cache::new(&model, 4);
    model.advance(&tokens, &mut cache)?;
    model.advance(&tokens[..1], &mut cache)?;
    Ok(())
}
