//! A whole merge, planned: config.json, tensors of the base, adapter_config.json, tensors of the adapter.

#![no_main]

use std::path::Path;

use libfuzzer_sys::{Corpus, fuzz_target};
use qmerge::merge::{self, RunOptions};
use qmerge::plan::{Method, Options, Plan};
use qmerge::{formats, round};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&choice, text)) = data.split_first() else { return Corpus::Reject };
    let Some(inputs) = qmerge_fuzz::inputs(qmerge_fuzz::parts(text)) else { return Corpus::Reject };
    let inputs = match inputs {
        Ok(inputs) => inputs,
        Err(error) => {
            qmerge_fuzz::honest(&error);
            return Corpus::Keep;
        }
    };
    let choice = usize::from(choice);
    let options = Options {
        // Most merges keep the base's format, and to types of GGUF there is no way.
        to: formats::FORMATS.iter().filter(|format| !format.is_of_gguf()).nth(choice % 32).copied(),
        rounding: Method::Named(round::ROUNDINGS[choice / 32 % round::ROUNDINGS.len()]),
        allow_unused: true,
        ..Options::default()
    };
    let run = RunOptions { threads: 2, ..RunOptions::default() };
    let planned = Plan::new(&inputs, &options).and_then(|plan| {
        let estimate = merge::estimate(&plan, &run, &round::Demand::default())?;
        assert!(
            !serde_json::to_string(&plan.summary(
                &inputs,
                Path::new("out"),
                2,
                estimate.seconds(),
                estimate.memory.peak_bytes
            ))
            .unwrap()
            .is_empty()
        );
        Ok(())
    });
    if let Err(error) = planned {
        qmerge_fuzz::honest(&error);
    }
    Corpus::Keep
});
