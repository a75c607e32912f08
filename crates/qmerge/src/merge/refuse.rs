//! What is refused before a run begins, some of it asked ahead by callers that do long work before.

use std::path::Path;

use super::{RunOptions, fingerprint};
use crate::adapters::Adapter;
use crate::error::{Error, Kind, Result};
use crate::plan::{Inputs, Part, Plan};
use crate::report::{self, Earlier, hashes_of};
use crate::write::Sink;

/// Errors if the disk of `target` has not enough free space for what [`run`](super::run) would write.
pub fn enough_space(target: &Path, plan: &Plan) -> Result<()> {
    crate::write::enough_space(target, plan.output_bytes())
}

/// Errors if [`run`](super::run), or [`run_part`](super::run_part) of a part, would refuse the output: for callers that do long work before, or none.
pub fn refuse_existing(
    inputs: &Inputs,
    target: &Path,
    part: Option<Part>,
    plan: &Plan,
    options: &RunOptions<'_>,
) -> Result<()> {
    refuse_file_name(target, plan)?;
    refuse_inputs(inputs, target)?;
    crate::write::refuse_existing(target, part, options.existing)?;
    crate::write::refuse_unwritable(target)
}

/// Errors if what an interrupted run left is another merge's, as far as a plan says before its calibration: for callers whose plan is the last one.
pub fn refuse_another(
    inputs: &Inputs,
    plan: &Plan,
    target: &Path,
    part: Option<Part>,
    options: &RunOptions<'_>,
) -> Result<()> {
    if !options.existing.resume {
        return Ok(());
    }
    let Some(begun) = crate::write::unfinished(target, part)? else { return Ok(()) };
    let now = fingerprint::of(inputs, plan, &hashes_of(&inputs.adapters)?, None)?;
    crate::write::refuse_before(&begun, &now).map_err(|error| error.in_file(target))
}

/// Errors if the name of an output that is to be one file is not that of what a plan writes.
pub fn refuse_file_name(target: &Path, plan: &Plan) -> Result<()> {
    if crate::write::is_single_file(target) { crate::write::refuse_name(target, plan) } else { Ok(()) }
}

/// Errors if an output that is one file has a name of another kind: for callers that do long work before.
pub fn refuse_name(sink: &dyn Sink, plan: &Plan) -> Result<()> {
    if sink.is_single_file() { crate::write::refuse_name(sink.path(), plan) } else { Ok(()) }
}

/// The output must not be, or contain, what is read.
pub(super) fn refuse_inputs(inputs: &Inputs, target: &Path) -> Result<()> {
    let Ok(target_path) = target.canonicalize() else { return Ok(()) };
    let original = inputs.original.iter().map(|original| original.checkpoint.path.as_path());
    let sources = std::iter::once(inputs.base.path.as_path())
        .chain(inputs.adapters.iter().map(|adapter| adapter.path.as_path()))
        .chain(original);
    for source in sources {
        if source.canonicalize().is_ok_and(|source| source.starts_with(&target_path)) {
            return Err(Error::new(Kind::Usage, "the output would replace an input")
                .in_file(target)
                .with_hint("choose another output"));
        }
    }
    Ok(())
}

/// The same adapter folded twice is nearly always a mistake, and so is one taken out that is not in it: where the base has a report, that knows.
pub(super) fn refuse_mistaken(inputs: &Inputs, hashes: &[String], undoes: bool) -> Result<()> {
    let base = &inputs.base;
    let name = report::name_of(base);
    let earlier = Earlier::beside(base).map_err(|error| error.with_hint("--force merges without looking at it"))?;
    let Some(earlier) = earlier else { return Ok(()) };
    let refused = |problem: String, hint: &str| {
        Err(Error::new(Kind::Mismatch, problem).in_file(&base.store.path_of(&name)).with_hint(hint))
    };
    let short = |hash: &str| hash.get(..12).unwrap_or(hash).to_owned();
    let weight_of = |hash: &str| earlier.adapters.iter().find(|said| said.sha256 == hash).map(|said| said.weight);
    // One that the base's report has with the other sign was taken out by that, or is now.
    let is_opposite =
        |(adapter, hash): (&Adapter, &String)| weight_of(hash).is_some_and(|weight| weight * adapter.weight < 0.0);
    if undoes {
        for (adapter, hash) in inputs.adapters.iter().zip(hashes) {
            let weight = -adapter.weight;
            let found = weight_of(hash).filter(|_| is_opposite((adapter, hash)));
            let hint = "--force subtracts it all the same";
            match found {
                None => {
                    return refused(
                        format!("its report does not say that this adapter is merged into it (sha256 {})", short(hash)),
                        hint,
                    );
                }
                Some(other) if other != weight => {
                    return refused(
                        format!(
                            "its report says that this adapter is merged into it with weight {other:?}, not {weight:?}"
                        ),
                        hint,
                    );
                }
                Some(_) => {}
            }
        }
        return Ok(());
    }
    let is_repeated = |(adapter, hash): &(&Adapter, &String)| {
        !hash.is_empty() && earlier.text.contains(hash.as_str()) && !is_opposite((adapter, hash))
    };
    match inputs.adapters.iter().zip(hashes).find(is_repeated) {
        None => Ok(()),
        Some((_, hash)) => refused(
            format!("its report says that this adapter is merged into it already (sha256 {})", short(hash)),
            "pass the original base, or --force to merge it once more",
        ),
    }
}
