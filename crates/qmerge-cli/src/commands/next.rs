//! The commands that a command is followed by. Each is complete: as it is printed it can be run.

use std::path::{Path, PathBuf};

use qmerge::inspect::not_run;
use qmerge::open::{Checkpoint, HubId};
use qmerge::report::{command_line, source_words};

use super::read_options;
use crate::args::{Meaning, Scaling, Sources, Tuned, adapter_and_weight};
use crate::show;

/// A text that the user has to have.
const TEXT: &str = "held-out.txt";

/// What a merge was made of, as options.
pub(super) struct Made<'a> {
    pub(super) sources: &'a Sources,
    pub(super) tuned: &'a Tuned,
    pub(super) meaning: &'a Meaning,
    pub(super) scaling: &'a Scaling,
}

impl Made<'_> {
    fn words(&self) -> Vec<String> {
        let Self { sources, tuned, meaning, scaling } = self;
        let read = |text: &String| adapter_and_weight(text).unwrap_or((text.into(), 1.0));
        let both = sources.adapter.iter().map(|text| (false, text)).chain(tuned.tuned.iter().map(|text| (true, text)));
        let all = both.map(|(is_tuned, text)| (is_tuned, read(text)));
        let all = all.map(|(is_tuned, (path, weight))| (is_tuned, named(&path), weight));
        // What was wrong with them the command has said.
        let options = read_options(meaning, scaling, Some(tuned)).unwrap_or_default();
        source_words(named(sources.base()), all, &meaning.map, meaning.allow_unused, &options)
    }

    /// Merges it, into a folder that is not there yet, and in the base's format unless another is named.
    pub(super) fn merge(&self, output: &Path, to: Option<&str>) {
        let output = ["-o".to_owned(), free(output).display().to_string()];
        let to = to.filter(|to| *to != "same").map(|to| ["--to".to_owned(), to.to_owned()]);
        show::next(&line("merge", [self.words(), output.into(), to.into_iter().flatten().collect()].concat()));
    }

    /// Tries a merge, and compares it with the adapter kept apart, which takes a text.
    pub(super) fn try_and_compare(&self, merged: &Path) {
        let is_tried = try_it(merged);
        match self.comparison(merged) {
            Some(line) if is_tried => show::then(&format!("and with a text of yours in {TEXT}"), &line),
            Some(line) => show::next(&line),
            None => {}
        }
    }

    /// Compares a merge with the adapter kept apart, and nothing before.
    pub(super) fn only_compare(&self, merged: &Path) {
        if let Some(line) = self.comparison(merged) {
            show::next(&line);
        }
    }

    fn comparison(&self, merged: &Path) -> Option<String> {
        let adapters =
            self.sources.adapter.iter().chain(&self.tuned.tuned).filter_map(|text| adapter_and_weight(text).ok());
        let mut places: Vec<PathBuf> = adapters.map(|(path, _)| path).collect();
        places.push(self.sources.base().to_owned());
        if !runs(merged) || !runs(self.sources.base()) || !places.iter().any(|place| has_tokenizer(place)) {
            return None;
        }
        let more = ["--merged".to_owned(), named(merged), "--text".into(), TEXT.into()];
        Some(line("compare", [self.words(), more.into()].concat()))
    }
}

/// Lets a model that can be run write. False, and nothing said, of any other.
pub(super) fn try_it(model: &Path) -> bool {
    let can_write = has_tokenizer(model) && runs(model);
    if can_write {
        let words = ["--base".to_owned(), named(model), "--prompt".into(), "Hello".into()];
        show::next(&line("generate", words.into()));
    }
    can_write
}

/// True of a model of a family that can be run.
pub(super) fn runs(path: &Path) -> bool {
    Checkpoint::open(path).is_ok_and(|checkpoint| not_run(&checkpoint).is_none())
}

/// True of a folder with a tokenizer, and of GGUF files, which have their own.
fn has_tokenizer(place: &Path) -> bool {
    place.join("tokenizer.json").is_file() || Checkpoint::open(place).is_ok_and(|model| model.gguf.is_some())
}

/// A path as it can be typed: of the hub's cache by its id.
fn named(path: &Path) -> String {
    HubId::of_snapshot(path).map_or_else(|| path.display().to_string(), |id| format!("{id}@{}", id.revision))
}

/// That path, or with the first number behind its stem that makes it one that is not there.
fn free(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let end = path.extension().map_or(String::new(), |end| format!(".{}", end.to_string_lossy()));
    let numbered = (2..).map(|number| path.with_file_name(format!("{stem}-{number}{end}")));
    std::iter::once(path.to_owned()).chain(numbered).find(|path| !path.exists()).unwrap_or_else(|| path.to_owned())
}

fn line(command: &str, words: Vec<String>) -> String {
    command_line(["qmerge", command].into_iter().chain(words.iter().map(String::as_str)))
}
