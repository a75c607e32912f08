//! How fast a model runs: prompts, one token after another, and the memory's own speed for comparison.
//!
//! `cargo bench -p qmerge-run -- BASE [ADAPTER]`; `benches/run.py` sets the figures beside those of torch. Medians of five rounds.

use std::path::Path;
use std::time::Instant;

use qmerge::adapters::Adapter;
use qmerge::error::Result;
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options as PlanOptions, Plan};
use qmerge_run::model::Cache;
use qmerge_run::tensors::Tensors;
use qmerge_run::{Model, Options, Unwatched};

const ROUNDS: usize = 3;
const PROMPT: usize = 512;
const NEW: usize = 32;

#[allow(clippy::print_stdout)]
fn main() -> Result<()> {
    let paths: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let Some(base) = paths.first() else {
        println!("give it a model: cargo bench -p qmerge-run -- BASE [ADAPTER]");
        return Ok(());
    };
    let adapters = match paths.get(1) {
        Some(path) => vec![Adapter::open(Path::new(path), 1.0)?],
        None => Vec::new(),
    };
    let inputs = Inputs::new(Checkpoint::open(Path::new(base))?, adapters)?;
    let plan = Plan::new(&inputs, &PlanOptions::default())?;
    let model = Model::new(&Tensors::new(&inputs, Some(&plan)), Options::default())?;
    let vocab = model.spec().vocab as u32;
    let tokens: Vec<u32> = (0..PROMPT as u32).map(|i| i * 7919 % vocab).collect();

    let mut buffer = Vec::new();
    for sequences in [1, 4] {
        let batch = vec![tokens.as_slice(); sequences];
        let (states, logits) = medians(|| {
            let start = Instant::now();
            let hidden = model.hidden(&batch, &mut Unwatched)?;
            let states = start.elapsed().as_secs_f64();
            for from in (0..PROMPT * sequences).step_by(128) {
                model.logits(&hidden, from..from + 128, &mut buffer)?;
                std::hint::black_box(&buffer);
            }
            Ok((states, start.elapsed().as_secs_f64()))
        })?;
        let count = (PROMPT * sequences) as f64;
        println!(
            "prompt {sequences} x {PROMPT}: {:.0} tokens/s, with logits {:.0} tokens/s",
            count / states,
            count / logits
        );
    }

    let (each, copied) = medians(|| {
        let mut cache = Cache::new(&model, 64 + NEW);
        model.advance(&tokens[..64], &mut cache)?;
        let start = Instant::now();
        for token in &tokens[..NEW] {
            let hidden = model.advance(&[*token], &mut cache)?;
            model.logits(&hidden, 0..1, &mut buffer)?;
            std::hint::black_box(&buffer);
        }
        let each = start.elapsed().as_secs_f64() / NEW as f64;
        Ok((each, seconds_of_a_copy()))
    })?;
    let bytes = model.bytes_per_token() as f64;
    println!(
        "generation: {:.1} tokens/s, {:.2} GB/s of weights; a copy reads {:.2} GB/s",
        1.0 / each,
        bytes / each / 1e9,
        COPIED as f64 / copied / 1e9
    );
    Ok(())
}

const COPIED: usize = 1 << 28;

/// All cores copy a part each of a block that no cache holds.
fn seconds_of_a_copy() -> f64 {
    let from = vec![1_u8; COPIED];
    let mut to = vec![2_u8; COPIED];
    let part = COPIED / std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (to, from) in to.chunks_mut(part).zip(from.chunks(part)) {
            scope.spawn(|| to.copy_from_slice(from));
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    std::hint::black_box(&to);
    seconds
}

fn medians(mut round: impl FnMut() -> Result<(f64, f64)>) -> Result<(f64, f64)> {
    let mut rounds = (0..ROUNDS).map(|_| round()).collect::<Result<Vec<_>>>()?;
    let mut median = |of: fn(&(f64, f64)) -> f64| {
        rounds.sort_by(|a, b| of(a).total_cmp(&of(b)));
        of(&rounds[ROUNDS / 2])
    };
    Ok((median(|r| r.0), median(|r| r.1)))
}
