//! The output's README.md: what the hub calls a model card. Like the weights it is the same for the same merge: no times, and no paths but those that the
//! user named.

use std::fmt::Write;
use std::path::Path;

use super::command::{command_line, source_words};
use super::{CARD_NAME, FILE_NAME, Report};
use crate::open::{HubId, Store, small_text};
use crate::plan::{Inputs, Plan};

/// Keys of a base's card that hold for what is made of it. `license: other` means nothing without the two after it.
const LICENCE: &[&str] = &["license", "license_name", "license_link"];

/// A base's card beyond this is not read.
const MAX_CARD: u64 = 1 << 20;

/// What an output is of its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    Merge,
    /// A merge without its adapters.
    Unmerge,
    /// The same model stored otherwise.
    Conversion,
}

/// The card of an output.
pub(crate) fn card(report: &Report, inputs: &Inputs, plan: &Plan, made: Made) -> String {
    let mut text = front_matter(report, inputs, made);
    // Nothing is lost where writing into a string fails: it does not.
    let _ = match made {
        Made::Merge => body(&mut text, report, inputs, plan),
        Made::Unmerge | Made::Conversion => short_body(&mut text, report, inputs, made),
    };
    text
}

/// What the hub reads: <https://huggingface.co/docs/hub/model-cards>.
fn front_matter(report: &Report, inputs: &Inputs, made: Made) -> String {
    let mut text = String::from("---\n");
    let config = inputs.base.config.as_ref();
    // A folder that holds a model; beside a single file there may be another model's card.
    let licence = match &inputs.base.gguf {
        Some(keys) => {
            keys.text("general.license").filter(|name| is_name(name)).map(|name| format!("license: {name}\n"))
        }
        None => config.map(|_| licence(&*inputs.base.store)),
    };
    let trained_on = || {
        let mut named = inputs.adapters.iter().filter_map(|adapter| adapter.config.base_model.as_deref());
        named.find_map(HubId::parse)
    };
    // What the other two were made from is the same model, which that tree has no word for.
    let of = (made == Made::Merge).then(|| HubId::of_snapshot(&inputs.base.path).or_else(trained_on)).flatten();
    if let Some(id) = of {
        // The hub knows "adapter", "finetune", "merge" and "quantized".
        text += &format!("base_model: {id}\nbase_model_relation: merge\n");
    }
    if config.is_some_and(|config| !config.model_type().is_empty()) {
        text += "library_name: transformers\n";
    }
    text += &licence.unwrap_or_default();
    text += "tags:\n";
    if made != Made::Merge {
        return text + "- qmerge\n---\n";
    }
    text += "- merge\n";
    let mut kinds: Vec<String> = report
        .adapters
        .iter()
        .map(|adapter| adapter.peft_type.to_ascii_lowercase())
        .filter(|kind| !kind.is_empty() && kind.chars().all(|c| c.is_ascii_alphanumeric()))
        .collect();
    kinds.sort();
    kinds.dedup();
    for tag in kinds {
        text += &format!("- {tag}\n");
    }
    text + "- qmerge\n---\n"
}

/// True for a licence's name as the hub writes them.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
}

/// The lines of [`LICENCE`] keys in a card's front matter, with the lines that belong to them.
fn licence(store: &dyn Store) -> String {
    let Ok(Some(text)) = small_text(store, CARD_NAME, MAX_CARD) else { return String::new() };
    licence_lines(text.trim_start_matches('\u{feff}'))
}

fn licence_lines(text: &str) -> String {
    let mut lines = text.lines().map(str::trim_end);
    if lines.next() != Some("---") {
        return String::new();
    }
    let (mut found, mut inside, mut closed) = (String::new(), false, false);
    for line in lines {
        if line == "---" {
            closed = true;
            break;
        }
        // Items of a list may stand as far left as their key.
        if !line.starts_with([' ', '-', '#']) && !line.is_empty() {
            inside = line.split_once(':').is_some_and(|(key, _)| LICENCE.contains(&key.trim()));
        }
        if inside && !line.is_empty() && !line.starts_with('#') {
            found += line;
            found.push('\n');
        }
    }
    if closed { found } else { String::new() }
}

fn body(text: &mut String, report: &Report, inputs: &Inputs, plan: &Plan) -> std::fmt::Result {
    let (summary, rounding) = (&report.summary, &report.rounding);
    let names = std::iter::once(&inputs.base.path).chain(inputs.adapters.iter().map(|adapter| &adapter.path));
    writeln!(text, "\n# {}\n", plain(&names.map(|path| title(path)).collect::<Vec<_>>().join(" + ")))?;
    let number = inputs.adapters.len();
    let what = match inputs.adapters.iter().filter(|adapter| adapter.is_tuned()).count() {
        0 if number == 1 => "An adapter, merged",
        0 => "Adapters, merged together",
        1 if number == 1 => "What a tuned model differs from a base model by, merged",
        tuned if tuned == number => "What tuned models differ from a base model by, merged together",
        _ => "Adapters and what tuned models differ from a base model by, merged together",
    };
    let whose = if report.task_vectors.is_none() { "the adapter" } else { "what was merged" };
    writeln!(text, "{what} into a base model with {} {}.\n", report.tool.name, report.tool.version)?;
    writeln!(text, "- Base: {} ({})", link(&inputs.base.path), report.base.format)?;
    for (adapter, reported) in inputs.adapters.iter().zip(&report.adapters) {
        let (kind, weight, hash) = (plain(&reported.peft_type), reported.weight, &reported.sha256);
        match adapter.is_tuned() {
            true => writeln!(text, "- Tuned model: {}, weight {weight}", link(&adapter.path))?,
            false => writeln!(text, "- Adapter: {} ({kind}), weight {weight}, SHA-256 `{hash}`", link(&adapter.path))?,
        }
    }
    if let Some(joined) = &report.task_vectors {
        writeln!(text, "- Differences joined by: {}", joined.in_words())?;
    }
    for rule in &report.lora_scale {
        writeln!(text, "- Factor by module: `{}`", plain(rule))?;
    }
    writeln!(text, "- Format: {}", report.output.format)?;
    write!(text, "- Rounding: {}", rounding.method)?;
    if let Some(reason) = &rounding.reason {
        write!(text, ": {}", plain(reason))?;
    }
    if let Some(calibration) = &rounding.calibration {
        write!(text, ", calibrated on {}", plain(calibration))?;
    }
    writeln!(text, "\n\n## What is left of {whose}\n\n| | |\n| --- | --- |")?;
    writeln!(text, "| merged weights | {} |", summary.weights_merged)?;
    if let Some(measured) = report.measured() {
        writeln!(text, "| measured behaviour | {} |", plain(&measured))?;
    }
    if let Some(survival) = summary.survival {
        writeln!(
            text,
            "| survival: 1 if its change of the weights is kept on average, 0 if it is gone | {survival:.3} |"
        )?;
    }
    if let Some(noise) = summary.noise_to_delta {
        writeln!(text, "| noise of rounding, in units of that change | {noise:.3} |")?;
    }
    if let Some(kept) = summary.kept_output {
        writeln!(
            text,
            "| kept output: strength at which its outputs come out, where layers' inputs are known | {kept:.3} |"
        )?;
    }
    writeln!(text, "| values that changed | {:.1} % |", 100.0 * summary.changed_fraction)?;
    writeln!(text, "\nVerdict: {}. `{FILE_NAME}` has the figures of every weight.\n", report.verdict.text)?;
    if let Some(residual) = &report.residual {
        writeln!(
            text,
            "`{}` is a LoRA of rank {} that holds a part of what rounding left: put it on this model with PEFT, and do not merge it.\n",
            residual.path, residual.rank
        )?;
    }
    writeln!(
        text,
        "## Verify\n\nWith {} at hand, and this folder as `merged`:\n\n```\n{}\n```",
        if report.task_vectors.is_none() { "base and adapter" } else { "the models above" },
        command(inputs, plan)
    )
}

/// What was done where nothing was merged.
fn short_body(text: &mut String, report: &Report, inputs: &Inputs, made: Made) -> std::fmt::Result {
    let (summary, tool) = (&report.summary, format!("{} {}", report.tool.name, report.tool.version));
    let adapters = || inputs.adapters.iter().map(|adapter| title(&adapter.path));
    let names: Vec<String> = std::iter::once(title(&inputs.base.path)).chain(adapters()).collect();
    writeln!(text, "\n# {}\n", plain(&names.join(" − ")))?;
    match made {
        Made::Unmerge => {
            writeln!(text, "A merged model, from which what the adapter adds was subtracted with {tool}.\n")?
        }
        _ => writeln!(text, "A model that was stored in another format with {tool}. Nothing was merged into it.\n")?,
    }
    let kind = if made == Made::Unmerge { "Merge" } else { "Model" };
    writeln!(text, "- {kind}: {} ({})", link(&inputs.base.path), report.base.format)?;
    for (adapter, reported) in inputs.adapters.iter().zip(&report.adapters) {
        // Its factor was turned over to subtract it.
        let (kind, weight, hash) = (plain(&reported.peft_type), -reported.weight, &reported.sha256);
        writeln!(text, "- Adapter: {} ({kind}), weight {weight}, SHA-256 `{hash}`", link(&adapter.path))?;
    }
    writeln!(text, "- Format: {}", report.output.format)?;
    if made == Made::Unmerge {
        writeln!(text, "- Values that changed: {:.1} %", 100.0 * summary.changed_fraction)?;
        writeln!(text, "\nVerdict: {}.", report.verdict.text.trim_end_matches('.'))?;
    }
    writeln!(text, "\n`{FILE_NAME}` has the figures of every weight.")
}

/// The command that verifies the merge. It does not name the output as it was named: the same merge has the same card under every name.
fn command(inputs: &Inputs, plan: &Plan) -> String {
    let adapters = inputs.adapters.iter().map(|adapter| (adapter.is_tuned(), named(&adapter.path), adapter.weight));
    let allow_unused = plan.accounting.iter().any(|accounting| !accounting.unused.is_empty());
    let sources = source_words(named(&inputs.base.path), adapters, &plan.maps, allow_unused, &plan.read);
    command_line(
        ["qmerge", "verify"].map(str::to_owned).iter().chain(&sources).chain(&["--merged".into(), "merged".into()]),
    )
}

/// The name of a model or an adapter, without where it lies.
fn title(path: &Path) -> String {
    let name = || path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    HubId::of_snapshot(path).map_or_else(name, |id| id.name)
}

/// What others can name it by: a hub id at its commit, else the path. Of an absolute path only the last name: the rest is of no use elsewhere, and
/// says more of the user's machine than the user may want to publish.
fn named(path: &Path) -> String {
    if let Some(id) = HubId::of_snapshot(path) {
        return format!("{id}@{}", id.revision);
    }
    let last = path.file_name().filter(|_| path.is_absolute());
    last.map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy()).into_owned()
}

/// [`named`] in Markdown.
fn link(path: &Path) -> String {
    match HubId::of_snapshot(path) {
        Some(id) => format!("[{id}](https://huggingface.co/{id}) at `{}`", id.revision),
        None => format!("`{}`", plain(&named(path))),
    }
}

/// One line that neither ends a code span nor becomes HTML.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .map(|c| if "`<>".contains(c) { '\'' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_licence_is_kept_and_nothing_else() {
        let card = "---\nlanguage:\n- en\nlicense: other\nlicense_name: llama3  \n# remark\nlicense_link:\n  LICENSE\ntags: [a]\n---\nlicense: no\n";
        assert_eq!(licence_lines(card), "license: other\nlicense_name: llama3\nlicense_link:\n  LICENSE\n");
        assert_eq!(
            licence_lines("---\r\nlicense:\r\n- mit\r\n- apache-2.0\r\ntags:\r\n- x\r\n---\r\n"),
            "license:\n- mit\n- apache-2.0\n"
        );
        for none in ["", "license: mit", "---\nlicense: mit\n", "# A\n---\nlicense: mit\n---\n"] {
            assert_eq!(licence_lines(none), "", "{none}");
        }
    }

    #[test]
    fn absolute_paths_stay_private() {
        assert_eq!(named(Path::new("/home/me/secret/base-nf4")), "base-nf4");
        assert_eq!(named(Path::new("../base-nf4")), "../base-nf4");
        assert_eq!(named(Path::new("/c/models--org--name/snapshots/abc")), "org/name@abc");
    }
}
