//! `qmerge report`.

use std::path::Path;

use qmerge::error::{Error, Kind, Result};
use qmerge::open::{MAX_REPORT, read_small};
use qmerge::report::{FILE_NAME, SCHEMA_VERSION};
use serde_json::Value;

use super::usage;
use crate::args::ReportArgs;
use crate::page::{self, Form};
use crate::{Outcome, show};

pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<Outcome> {
    write(args)?;
    show::note(&format!("wrote {}", args.output.display()));
    Ok(Outcome::Done)
}

/// Writes the page of the documents.
pub(crate) fn write(args: &ReportArgs) -> Result<()> {
    if page::form(&args.output)? != Form::Html {
        return Err(Error::new(Kind::Usage, "the page is written as .html").in_file(&args.output));
    }
    let (mut reports, mut comparison) = (Vec::new(), None);
    for path in &args.documents {
        let (document, of_merge) = read(path)?;
        if of_merge {
            reports.push(document);
        } else if comparison.replace(document).is_some() {
            return Err(usage("two comparisons: a page shows one".into()).with_hint("compare all merges at once"));
        }
    }
    page::write(&args.output, &reports, comparison.as_ref())
}

/// The report that a merge left in its output, if it is there and can be read.
pub(super) fn of_merge(output: &Path) -> Option<Value> {
    let path = if output.is_dir() { output.join(FILE_NAME) } else { qmerge::report::path_beside(output) };
    read(&path).ok().filter(|(_, of_merge)| *of_merge).map(|(document, _)| document)
}

/// A document, and whether it is a merge's report rather than a comparison.
fn read(path: &Path) -> Result<(Value, bool)> {
    let file = if path.is_dir() { path.join(FILE_NAME) } else { path.to_owned() };
    let bytes = read_small(&file, MAX_REPORT)?;
    let refuse = |problem: String| Error::new(Kind::Malformed, problem).in_file(&file);
    let document: Value = serde_json::from_slice(&bytes).map_err(|error| refuse(format!("not JSON: {error}")))?;
    let of_merge = document["weights"].is_array() && document["output"].is_object();
    let comparison = document["models"].is_array() && document["windows"].is_number();
    if !of_merge && !comparison {
        let hint = format!("a page shows a {FILE_NAME} or what `qmerge compare --json` printed");
        return Err(refuse("neither a merge's report nor a comparison".into()).with_hint(hint));
    }
    match document["schema_version"].as_u64() {
        Some(version) if version <= u64::from(SCHEMA_VERSION) => Ok((document, of_merge)),
        _ => Err(refuse(format!(
            "its schema_version is {}, and this qmerge reads {SCHEMA_VERSION}",
            document["schema_version"]
        ))),
    }
}
