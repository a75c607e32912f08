//! `qmerge calibrate`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use qmerge::adapters::Names;
use qmerge::arch;
use qmerge::dtype::Dtype;
use qmerge::error::{self, Error, Kind};
use qmerge::merge;
use qmerge::plan::{Inputs, Plan};
use qmerge::progress::Progress;
use qmerge::round::{self, Calibration, Demand, Known, Take};
use qmerge_run::calibrate::{Amount, FromModel};
use qmerge_run::memory::{self, Needs};
use qmerge_run::tensors::Tensors;
use qmerge_run::text::{Beginnings, Tokenizer};
use qmerge_run::{Model, Options};
use serde::Serialize;

use super::compare::read_text;
use super::{apart_options, open_with, usage};
use crate::args::{CalibrateArgs, Engine, threads};
use crate::progress::Bar;
use crate::{Outcome, show};

/// What was stored.
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) output: String,
    pub(crate) taken_from: String,
    pub(crate) bytes: u64,
}

pub(crate) fn run(args: &CalibrateArgs) -> Result<Outcome> {
    let bar = Bar::new(false);
    let found = find(args, &bar);
    bar.clear();
    let found = found?;
    show(Some(&found));
    Ok(Outcome::Done)
}

/// Says what was stored.
pub(super) fn show(found: Option<&Found>) {
    show::note(&match found {
        Some(found) => {
            format!("{} of moments, from {}, in {}", show::bytes(found.bytes), found.taken_from, found.output)
        }
        None => "this merge goes by no moments of many tokens, and none were stored".into(),
    });
}

/// Runs the model and stores what its layers are given.
pub(crate) fn find(args: &CalibrateArgs, progress: &dyn Progress) -> error::Result<Found> {
    if args.output.exists() && !args.force {
        return Err(Error::new(Kind::Exists, "it exists already")
            .in_file(&args.output)
            .with_hint("--force replaces it"));
    }
    let inputs = open_with(args.model.base(), &args.adapter)?;
    let dtype = if args.dtype == "bf16" { Dtype::BF16 } else { Dtype::F32 };
    if !args.add.is_empty() {
        progress.phase("adding moments", "layers");
        let names = Names::new(&inputs.base, &inputs.inventory.weights, &args.meaning.map)?;
        let calibration = qmerge_store::added(&args.add, &names)?;
        calibration.check()?;
        progress.start(1);
        return stored(&inputs, calibration, (dtype, &args.output), &|_| true, progress);
    }
    let plan = Plan::new(&inputs, &apart_options(&args.meaning, &args.scaling)?)?;
    let text = Text::read(&inputs, args.text.as_deref(), args.amount.amount(), progress)?;
    let needs = needs_alone(&inputs, &plan, &text, &args.engine)?;
    progress.start(needs.before + needs.demand.work);
    let engine = Options { threads: args.engine.workers.threads, held: Some(needs.weights), progress: Some(progress) };
    let model = Model::new(&Tensors::new(&inputs, Some(&plan)), engine)?;
    let calibration = text.calibration(&model, args.writing.seed, false, needs)?;
    progress.phase("taking moments", "layers");
    stored(&inputs, calibration, (dtype, &args.output), &|_| true, progress)
}

/// Stores the moments of weights that are `wanted`.
pub(super) fn stored(
    inputs: &Inputs,
    calibration: impl Calibration,
    (dtype, output): (Dtype, &Path),
    wanted: &(dyn Fn(&str) -> bool + Sync),
    progress: &dyn Progress,
) -> error::Result<Found> {
    let mut calibration = Counted { calibration, wanted, progress };
    let bytes = round::store(&inputs.base, &mut calibration, dtype, output)?;
    Ok(Found { output: output.display().to_string(), taken_from: calibration.about(), bytes })
}

/// What a model is run on.
pub(super) struct Text {
    /// Tokens of a file; the model writes the text itself where there is none.
    given: Option<(PathBuf, Vec<u32>)>,
    beginnings: Beginnings,
    amount: Amount,
}

impl Text {
    /// Reads and tokenizes a file, if there is one.
    pub(super) fn read(
        inputs: &Inputs,
        path: Option<&Path>,
        amount: Amount,
        progress: &dyn Progress,
    ) -> error::Result<Self> {
        let Some(path) = path else { return Ok(Self { given: None, beginnings: beginnings(inputs)?, amount }) };
        progress.phase("reading the text", "");
        let tokenizer = Tokenizer::of(inputs)?;
        let tokens = tokenizer.encode(&read_text(path)?)?;
        // The embedding has at least as many rows.
        tokenizer.check(&tokens, arch::spec_of(arch::config(&inputs.base)?)?.vocab)?;
        // Without what is secret in an address.
        let shown = PathBuf::from(qmerge_store::redacted_word(&path.to_string_lossy()));
        Ok(Self { given: Some((shown, tokens)), beginnings: beginnings_by(&tokenizer, inputs)?, amount })
    }

    /// True if it has few tokens, as that of `--fast` has.
    pub(super) fn is_of_few(&self) -> bool {
        self.amount == Amount::Few
    }

    /// How its sequences begin.
    pub(super) fn beginnings(&self) -> &Beginnings {
        &self.beginnings
    }

    /// What a calibration on it takes, for a merge or whatever else comes to `peak` bytes with it.
    pub(super) fn needs(
        &self,
        inputs: &Inputs,
        plan: &Plan,
        engine: (usize, Option<u64>),
        peak: impl FnMut(&Demand) -> error::Result<u64>,
    ) -> error::Result<Needs> {
        let (given, limit) = engine;
        let options = Options { threads: 1, held: Some(0), progress: None };
        let bare = Model::new(&Tensors::new(inputs, None), options)?;
        let tokens = self.given.as_ref().map(|(_, tokens)| tokens.len());
        let needs =
            |together| memory::needs(&bare, plan, tokens, &self.beginnings, (self.amount, together), threads(given));
        memory::fit(limit, needs, peak)
    }

    /// Runs `model` on it; with `hold` it writes more than that, to be judged by.
    pub(super) fn calibration<'m, 'a>(
        &self,
        model: &'m Model<'a>,
        seed: u64,
        hold: bool,
        needs: Needs,
    ) -> error::Result<FromModel<'m, 'a>> {
        let calibration = match &self.given {
            None => FromModel::own_text(model, &self.beginnings, seed, (self.amount, needs.together), hold)?,
            Some((path, tokens)) => FromModel::text(model, tokens, &self.beginnings, path, self.amount)?,
        };
        Ok(calibration.expecting(needs.demand))
    }
}

/// How the sequences of a model begin, as its tokenizer and its chat template say; a model without a tokenizer writes from any token.
pub(super) fn beginnings(inputs: &Inputs) -> error::Result<Beginnings> {
    if !Tokenizer::is_there(inputs) {
        return Ok(Beginnings::default());
    }
    beginnings_by(&Tokenizer::of(inputs)?, inputs)
}

fn beginnings_by(tokenizer: &Tokenizer, inputs: &Inputs) -> error::Result<Beginnings> {
    // A chat template that came with the adapter says that it was trained on chats; the base's own says nothing of it.
    let with_adapter =
        inputs.adapters.iter().filter_map(|adapter| adapter.beside()).any(|store| store.has("tokenizer.json"));
    let beginnings = tokenizer.beginnings(with_adapter);
    let known = arch::spec_of(arch::config(&inputs.base)?)?.vocab;
    Ok(beginnings.known(known))
}

/// What a calibration takes where no merge stands beside it.
pub(super) fn needs_alone(inputs: &Inputs, plan: &Plan, text: &Text, engine: &Engine) -> error::Result<Needs> {
    let limit = engine.max_memory;
    text.needs(inputs, plan, (engine.workers.threads, limit), |demand| {
        let bytes = merge::PROGRAM_BYTES + demand.held + demand.working;
        match limit {
            Some(limit) if limit < bytes => Err(usage(format!(
                "--max-memory {}M is not enough: running the model takes at least {}M",
                limit >> 20,
                bytes.div_ceil(1 << 20)
            ))),
            _ => Ok(bytes),
        }
    })
}

/// A calibration of some weights that tells which layer it is at.
struct Counted<'c, C> {
    calibration: C,
    wanted: &'c (dyn Fn(&str) -> bool + Sync),
    progress: &'c dyn Progress,
}

impl<C: Calibration> Calibration for Counted<'_, C> {
    fn about(&self) -> String {
        self.calibration.about()
    }

    fn identity(&self) -> error::Result<String> {
        self.calibration.identity()
    }

    fn demand(&self) -> Demand {
        self.calibration.demand()
    }

    fn each(&mut self, wanted: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> error::Result<()> {
        let layers = self.calibration.demand().layers.len() as u64;
        let mut taken = CountedTake { take, progress: self.progress, number: 0, layers };
        self.calibration.each(&|name| wanted(name) && (self.wanted)(name), &mut taken)
    }
}

struct CountedTake<'t> {
    take: &'t mut dyn Take,
    progress: &'t dyn Progress,
    number: u64,
    layers: u64,
}

impl Take for CountedTake<'_> {
    fn known(&mut self, known: Known) -> error::Result<()> {
        self.take.known(known)
    }

    fn layer(&mut self) -> error::Result<()> {
        self.number += 1;
        self.progress.part(self.number, self.layers);
        self.take.layer()
    }
}
