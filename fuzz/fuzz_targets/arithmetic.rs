//! Arithmetic on an adapter: made a LoRA of another rank, combined with itself, and taken out of a base again.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use qmerge::adapters::ReadOptions;
use qmerge::arithmetic::{self, CombineOptions, ConvertOptions, METHODS, Wanted};
use qmerge::dtype::Dtype;
use qmerge::error::Result;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&choice, text)) = data.split_first() else { return Corpus::Reject };
    let Some(inputs) = qmerge_fuzz::inputs(qmerge_fuzz::parts(text)) else { return Corpus::Reject };
    if let Err(error) = inputs.and_then(|inputs| calculate(inputs, choice)) {
        qmerge_fuzz::honest(&error);
    }
    Corpus::Keep
});

fn calculate(mut inputs: Inputs, choice: u8) -> Result<()> {
    let output = qmerge_fuzz::folder("out").join("adapter");
    match choice {
        0 => {
            arithmetic::undo(&mut inputs, &[], &ReadOptions::default())?;
            Plan::new(&inputs, &Options::default()).map(|_| ())
        }
        // Of one adapter, as the command line has it.
        1 if inputs.adapters.len() == 1 => {
            let plan = Plan::new(&inputs, &Options::default())?;
            let (dtype, wanted) = (Dtype::F32, Wanted::Rank(2));
            let options = ConvertOptions { wanted, dtype, seed: 0, force: true, allow_unused: false, threads: 1 };
            arithmetic::convert(&inputs, &plan, &output, &options, &Silent).map(|_| ())
        }
        1 => Ok(()),
        _ => {
            let method = &METHODS[usize::from(choice) % METHODS.len()];
            let mut options = CombineOptions { force: true, threads: 1, ..CombineOptions::new(method) };
            options.rank = method.takes_rank().then_some(2);
            options.density = method.takes_density().then_some(0.5);
            arithmetic::combine(&inputs.adapters, None, &output, &options, &Silent).map(|_| ())
        }
    }
}
