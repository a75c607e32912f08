//! Models and adapters that are named by their hub id and are not in the local cache: downloaded into it, laid out as huggingface_hub lays them out, so that
//! the library finds them there, and so does every other program. The library itself never goes online.

mod cache;
mod needed;

use std::path::{Path, PathBuf};

use qmerge::error::{Error, Kind, Result};
use qmerge::open::HubId;
use qmerge::open::hub::cache_folder;
use qmerge::progress::Progress;

use crate::args::{Command, MergeArgs, adapter_and_weight};
use crate::show;
use qmerge_store::hub::{Client, offline};

/// Downloads what a command names, or an adapter that it names, and this machine lacks. Returns a remark on each.
pub(crate) fn provide(command: &mut Command, progress: &dyn Progress) -> Result<Vec<String>> {
    command.place_words()?;
    command.refuse_output()?;
    let mut remarks = Vec::new();
    fetch_absent(&locations(command), progress, &mut remarks)?;
    if let Some(remark) = command.take_base()? {
        remarks.push(remark);
        let named = |error: Error| {
            let rest = error.hint().map_or(String::new(), |hint| format!("; {hint}"));
            error.with_hint(format!("the adapter names it as its base: give the one that you have with --base{rest}"))
        };
        fetch_absent(&locations(command), progress, &mut remarks).map_err(named)?;
        if let Some(base) = command.base().filter(|base| !qmerge_store::is_address(base)) {
            qmerge::open::resolve(base).map_err(named)?;
        }
    }
    Ok(remarks)
}

fn fetch_absent(locations: &[PathBuf], progress: &dyn Progress, remarks: &mut Vec<String>) -> Result<()> {
    for location in locations {
        let Some(id) = absent(location) else { continue };
        if offline() {
            qmerge::open::resolve(location)
                .map_err(|error| error.with_hint("check the path, or unset HF_HUB_OFFLINE to download it"))?;
        } else {
            let remark = fetch(&id, progress).map_err(|error| beside(error.in_file(location), location))?;
            remarks.push(remark);
        }
    }
    Ok(())
}

/// The same error, with what a folder of this machine has, if the name begins with one: it may be a path that is misspelled.
fn beside(error: Error, location: &Path) -> Error {
    let Some(folder) = location.parent().filter(|folder| folder.is_dir()) else { return error };
    let rest = error.hint().map_or(String::new(), |hint| format!("; {hint}"));
    error.with_hint(format!("{} is a folder here, in which there is no such name{rest}", folder.display()))
}

/// Whether a command asked for silence.
pub(crate) fn quiet(command: &Command) -> bool {
    match command {
        Command::Merge(args) | Command::Finish(args) => args.running.quiet,
        Command::Plan(args) => args.merge.running.quiet,
        Command::Convert(args) => args.running.quiet,
        Command::Unmerge(args) => args.running.quiet,
        Command::Generate(args) => args.quiet,
        Command::Verify(args) => args.quiet,
        Command::Compare(args) => args.quiet,
        _ => false,
    }
}

/// Every model and adapter that a command names.
fn locations(command: &Command) -> Vec<PathBuf> {
    let with = |base: Option<&Path>, adapters: &[String], merged: &[PathBuf]| {
        // What is no `PATH=WEIGHT` is refused where it is opened.
        let adapters = adapters.iter().filter_map(|text| Some(adapter_and_weight(text).ok()?.0));
        base.map(Path::to_path_buf).into_iter().chain(adapters).chain(merged.iter().cloned()).collect()
    };
    let merge = |args: &MergeArgs| {
        let adapters = [args.sources.adapter.as_slice(), &args.tuned.tuned].concat();
        with(args.sources.base.as_deref(), &adapters, args.calibrating.original.as_slice())
    };
    match command {
        Command::Merge(args) | Command::Finish(args) => merge(args),
        Command::Plan(args) => merge(&args.merge),
        Command::Verify(args) => {
            let adapters = [args.sources.adapter.as_slice(), &args.tuned.tuned].concat();
            with(args.sources.base.as_deref(), &adapters, &[args.merged().to_path_buf()])
        }
        Command::Compare(args) => {
            let adapters = [args.sources.adapter.as_slice(), &args.tuned.tuned, &args.beside].concat();
            with(args.sources.base.as_deref(), &adapters, &args.merged)
        }
        Command::Truncate(args) => args.base.iter().cloned().chain([args.adapter().to_path_buf()]).collect(),
        Command::Combine(args) => with(None, &args.adapter, &[]),
        Command::Extract(args) => args.trained.both().map(Path::to_path_buf).to_vec(),
        Command::ConvertAdapter(args) => with(args.sources.base.as_deref(), &args.sources.adapter, &[]),
        Command::Unmerge(args) => with(args.merged.sources.base.as_deref(), &args.merged.sources.adapter, &[]),
        Command::Generate(args) => with(Some(args.model.base()), &args.adapter, &[]),
        Command::Calibrate(args) => with(Some(args.model.base()), &args.adapter, &[]),
        Command::Convert(args) => vec![args.model.base().to_path_buf()],
        Command::Inspect(args) => vec![args.path.clone()],
        Command::Report(_) | Command::Demo(_) | Command::Completions(_) | Command::Man(_) => Vec::new(),
    }
}

/// The id that is to be downloaded, if a location is one and is neither a path nor whole in the cache.
fn absent(location: &Path) -> Option<HubId> {
    // A file's name that is not there is a mistake, not a repository.
    let file = location
        .extension()
        .is_some_and(|ext| ["safetensors", "gguf", "bin", "pt", "json"].iter().any(|known| ext == *known));
    if location.exists() || file {
        return None;
    }
    let id = HubId::parse(location.to_str()?)?;
    let there = id.snapshot(&cache_folder()?);
    (!there.is_some_and(|snapshot| cache::is_complete(&snapshot))).then_some(id)
}

fn fetch(id: &HubId, progress: &dyn Progress) -> Result<String> {
    let Some(cache) = cache_folder() else {
        return Err(
            Error::new(Kind::Usage, "no Hugging Face cache to download into").with_hint("set HF_HUB_CACHE or HF_HOME")
        );
    };
    progress.phase(&format!("looking for {id}"), "");
    let client = Client::new("no such folder, and ")?;
    let listing = client.listing(id)?;
    let names = needed::needed(&listing.names)
        .map_err(|problem| Error::new(Kind::Unsupported, format!("{id} at {} has {problem}", client.shown())))
        .map_err(|error| error.with_hint("name a repository that holds safetensors; of GGUF files, download the one that is meant and give its path"))?;
    let mut files = Vec::new();
    for name in names {
        files.push(client.look(id, &listing.commit, name)?);
        if progress.cancelled() {
            return Err(qmerge::progress::stopped());
        }
    }
    progress.phase(&format!("downloading {id}"), "");
    progress.start(files.iter().filter_map(|file| file.size).sum());
    let folder = cache::Folder::new(&cache, id);
    for file in &files {
        folder.download(&client, file, progress)?;
    }
    folder.publish(id, &listing.commit, &files)?;
    let bytes = files.iter().filter_map(|file| file.size).sum();
    Ok(format!(
        "downloaded {id}: {}, {}, into {}",
        show::counted(files.len(), "file"),
        show::bytes(bytes),
        cache.display()
    ))
}

/// Someone else's progress, told only what it has words for: its figures are of the work that comes after a download.
pub(crate) struct Beside<'a>(pub(crate) &'a dyn Progress);

impl Progress for Beside<'_> {
    fn phase(&self, name: &str, unit: &str) {
        self.0.phase(name, unit);
    }

    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}
