//! Which base and adapters a command means: words without an option before them, and the base that an adapter names.

use std::path::{Path, PathBuf};

use qmerge::error::{Error, Kind, Result};
use qmerge::open;

use crate::args::{Command, CompareArgs, Sources, VerifyArgs, adapter_and_weight};

/// What says which base an adapter is of.
const CONFIG: &str = "adapter_config.json";

impl Command {
    /// What it is about, where that is a base and adapters of it.
    fn sources(&mut self) -> Option<&mut Sources> {
        match self {
            Self::Merge(args) | Self::Finish(args) => Some(&mut args.sources),
            Self::Plan(args) => Some(&mut args.merge.sources),
            Self::Verify(args) => Some(&mut args.sources),
            Self::Compare(args) => Some(&mut args.sources),
            Self::ConvertAdapter(args) => Some(&mut args.sources),
            Self::Unmerge(args) => Some(args.merged.take()),
            _ => None,
        }
    }

    /// The base, where one is named.
    pub(crate) fn base(&mut self) -> Option<&Path> {
        self.sources()?.base.as_deref()
    }

    /// Tuned models whose difference from the base it is about.
    fn tuned(&self) -> &[String] {
        match self {
            Self::Merge(args) | Self::Finish(args) => &args.tuned.tuned,
            Self::Plan(args) => &args.merge.tuned.tuned,
            Self::Verify(args) => &args.tuned.tuned,
            Self::Compare(args) => &args.tuned.tuned,
            _ => &[],
        }
    }

    /// The cluster that is to do it.
    pub(crate) fn cluster(&self) -> Option<&str> {
        match self {
            Self::Merge(args) => args.on.as_deref(),
            _ => None,
        }
    }

    /// Takes the scratch into use that was asked for, until what is returned goes.
    pub(crate) fn scratch(&self) -> Result<Option<qmerge_store::InUse>> {
        let asked = match self {
            Self::Merge(args) | Self::Finish(args) => &args.running.scratch,
            Self::Plan(args) => &args.merge.running.scratch,
            Self::Convert(args) => &args.running.scratch,
            Self::Unmerge(args) => &args.running.scratch,
            Self::Calibrate(args) => &args.engine.scratch,
            Self::Truncate(args) => &args.engine.scratch,
            Self::Compare(args) => &args.engine.scratch,
            Self::Generate(args) => &args.engine.scratch,
            _ => &None,
        };
        asked.as_ref().map(|asked| qmerge_store::scratch(&asked.folder, asked.bytes)).transpose()
    }

    /// Errors if the output is to lie where it cannot.
    pub(crate) fn refuse_output(&self) -> Result<()> {
        let output = match self {
            Self::Finish(args) => &args.output,
            Self::Merge(args) if args.part.is_some() || args.push.is_some() => &args.output,
            Self::Plan(args) if args.parts > 1 || args.merge.part.is_some() => &args.merge.output,
            Self::Truncate(args) => &args.output,
            Self::Combine(args) => &args.output,
            Self::Extract(args) => &args.output,
            Self::ConvertAdapter(args) => &args.output,
            Self::Calibrate(args) => &args.output,
            Self::Report(args) => &args.output,
            Self::Demo(args) => &args.output,
            _ => return Ok(()),
        };
        if !qmerge_store::is_address(output) {
            return Ok(());
        }
        let shown = qmerge_store::redacted_word(&output.to_string_lossy());
        let what = match self {
            Self::Plan(_) => "parts of a merge must have a path",
            Self::Merge(args) if args.part.is_some() => "parts of a merge must have a path",
            _ => "what this command writes must have a path of this machine",
        };
        Err(Error::new(Kind::Unsupported, what)
            .in_file(shown.as_ref())
            .with_hint("whole merges, conversions and unmerges can be written to a store"))
    }

    /// Gives words without an option their places. Where one model is named and no more, it is the adapter: that names its base.
    pub(crate) fn place_words(&mut self) -> Result<()> {
        match self {
            Self::Verify(args) => take_merged(args)?,
            Self::Compare(args) => take_merges(args),
            Self::Extract(args) => return args.trained.place_words(),
            Self::Combine(args) => args.adapter.append(&mut args.words),
            _ => {}
        }
        let tuned = self.tuned().len();
        let Some(sources) = self.sources() else { return Ok(()) };
        let mut words = std::mem::take(&mut sources.words).into_iter();
        if sources.base.is_none() && words.len() + sources.adapter.len() + tuned > 1 {
            sources.base = words.next().map(PathBuf::from);
        }
        sources.adapter.extend(words);
        if sources.adapter.is_empty() && tuned == 0 {
            return Err(Error::new(Kind::Usage, "no adapter is named")
                .with_hint("write `BASE ADAPTER`, or --base and --adapter"));
        }
        Ok(())
    }

    /// Takes the base from the first adapter's configuration, where none is named. The adapter must be on this machine. Returns a remark.
    pub(crate) fn take_base(&mut self) -> Result<Option<String>> {
        let is_unmerge = matches!(self, Self::Unmerge(_));
        let Some(sources) = self.sources().filter(|sources| sources.base.is_none()) else { return Ok(None) };
        if is_unmerge {
            // What the adapter names is what it was trained on, not the merge.
            return Err(Error::new(Kind::Usage, "the merge is not named")
                .with_hint("write `MERGED ADAPTER`, or --base and --adapter"));
        }
        let Some(first) = sources.adapter.first() else {
            return Err(Error::new(Kind::Usage, "the base is not named, and a tuned model does not name it")
                .with_hint("give --base"));
        };
        let (adapter, _) = adapter_and_weight(first).map_err(|problem| Error::new(Kind::Usage, problem))?;
        let names_none = |adapter: &Path| {
            let problem = format!("no base is given, and {} has no adapter_config.json to name one", adapter.display());
            Err(Error::new(Kind::Usage, problem).with_hint("write `BASE ADAPTER`, or --base and --adapter"))
        };
        let is_address = qmerge_store::is_address(&adapter);
        if !is_address && !open::resolve(&adapter)?.join(CONFIG).is_file() {
            return names_none(&adapter);
        }
        let opened = qmerge_store::adapter(&adapter, 1.0)?;
        if !opened.tensors.store.has(CONFIG) {
            return names_none(&opened.path);
        }
        let path = opened.tensors.store.path_of(CONFIG);
        let named = opened.config.base_model;
        let Some(base) = named.filter(|name| !name.is_empty()) else {
            return Err(Error::new(Kind::Usage, "no base is given, and the adapter names none")
                .in_file(&path)
                .with_hint("give --base"));
        };
        // Who wrote the adapter does not decide which servers are asked, and with whose keys.
        if qmerge_store::is_address(Path::new(&base)) {
            return Err(Error::new(
                Kind::Usage,
                format!("no base is given, and the adapter names an address: {}", qmerge_store::redacted_word(&base)),
            )
            .in_file(&path)
            .with_hint("if it is to be asked, give it with --base"));
        }
        let remark = format!("the base is {base}, as the adapter says");
        sources.base = Some(base.into());
        Ok(Some(remark))
    }
}

/// Models behind a base and an adapter are merges of them.
fn take_merges(args: &mut CompareArgs) {
    let is_model = |path: &Path| {
        open::resolve(path).is_ok_and(|path| path.join("config.json").is_file() && !path.join(CONFIG).is_file())
    };
    let named = usize::from(args.sources.base.is_some()) + args.sources.adapter.len() + args.tuned.tuned.len();
    // The first word is the base, unless that has its option.
    let base = usize::from(args.sources.base.is_none());
    while args.sources.words.len() > base
        && args.sources.words.len() + named > 2
        && let Some(last) = args.sources.words.pop_if(|word| is_model(Path::new(word)))
    {
        args.merged.insert(0, last.into());
    }
}

/// The merge is the last word, unless it has its option.
fn take_merged(args: &mut VerifyArgs) -> Result<()> {
    if args.merged.is_some() {
        return Ok(());
    }
    let last = args.sources.words.pop().map(PathBuf::from);
    // An adapter there is one word too few, not a merge.
    let is_merge = |path: &PathBuf| !open::resolve(path).is_ok_and(|path| path.join(CONFIG).is_file());
    args.merged = last.filter(is_merge);
    match args.merged {
        Some(_) => Ok(()),
        None => Err(Error::new(Kind::Usage, "the merge is not named")
            .with_hint("write `BASE ADAPTER MERGED`, or --base, --adapter and --merged")),
    }
}
