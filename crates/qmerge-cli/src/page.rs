//! The report as a page: one file of HTML that needs no network, with the JSON documents in it. See page/README.md.

use std::path::Path;

use qmerge::error::{Error, Kind, Result};
use qmerge::write::make_parent;
use serde_json::{Value, json};

const TEMPLATE: &str = include_str!("../page/template.html");

/// What stands for `{{name}}` in the template, other than the data.
const PARTS: &[(&str, &[&str])] = &[
    ("version", &[env!("CARGO_PKG_VERSION")]),
    ("uplot_css", &[include_str!("../page/vendor/uPlot.min.css")]),
    ("uplot_js", &[include_str!("../page/vendor/uPlot.iife.min.js")]),
    ("uplot_license", &[include_str!("../page/vendor/uPlot-LICENSE")]),
    ("page_css", &[include_str!("../page/page.css")]),
    (
        "page_js",
        &[
            include_str!("../page/dom.js"),
            include_str!("../page/data.js"),
            include_str!("../page/verdict.js"),
            include_str!("../page/done.js"),
            include_str!("../page/behaviour.js"),
            include_str!("../page/heat.js"),
            include_str!("../page/charts.js"),
            include_str!("../page/table.js"),
            include_str!("../page/several.js"),
            include_str!("../page/main.js"),
        ],
    ),
];

/// How a report is written, by the name of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The document.
    Json,
    /// The page.
    Html,
}

/// The form of a report's file. Errors if its name says neither.
pub(crate) fn form(path: &Path) -> Result<Form> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    match extension.as_str() {
        "json" => Ok(Form::Json),
        "html" | "htm" => Ok(Form::Html),
        _ => Err(Error::new(Kind::Usage, "a report is written as .json or .html").in_file(path)),
    }
}

/// Errors if a report's file is there already and is not to be replaced.
pub(crate) fn refuse_existing(path: &Path, force: bool) -> Result<()> {
    if force || !path.exists() {
        return Ok(());
    }
    Err(Error::new(Kind::Exists, "the report's file exists already")
        .in_file(path)
        .with_hint("choose another name, or replace it with --force"))
}

/// Errors if a file is what a merge wrote beside its weights: a page or a comparison does not replace it.
pub(crate) fn refuse_report(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(qmerge::report::FILE_NAME) && path.exists() {
        return Err(Error::new(Kind::Exists, "this is the report of a merge")
            .in_file(path)
            .with_hint("choose another name"));
    }
    Ok(())
}

/// The page of one or more merges' reports, of a comparison, or of both.
pub(crate) fn render(reports: &[Value], comparison: Option<&Value>) -> String {
    // In a script, only `<` can begin anything but text, and in JSON it only occurs in strings.
    let data = json!({ "reports": reports, "comparison": comparison }).to_string().replace('<', "\\u003c");
    let mut page = String::with_capacity(data.len() + (128 << 10));
    // Names are looked for in the template alone, never in what was put in.
    for (number, piece) in TEMPLATE.split("{{").enumerate() {
        let text = match piece.split_once("}}") {
            Some((name, after)) if number > 0 => {
                match PARTS.iter().find(|(part, _)| *part == name) {
                    Some((_, texts)) => texts.iter().for_each(|text| page.push_str(text)),
                    None => page.push_str(&data),
                }
                after
            }
            _ => piece,
        };
        page.push_str(text);
    }
    page
}

/// Writes a page.
pub(crate) fn write(path: &Path, reports: &[Value], comparison: Option<&Value>) -> Result<()> {
    publish(path, render(reports, comparison))
}

fn publish(path: &Path, text: String) -> Result<()> {
    make_parent(path)?;
    std::fs::write(path, text).map_err(|error| Error::io("write", path, error))
}

/// Writes a document.
pub(crate) fn write_json(path: &Path, document: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(document).unwrap_or_default();
    text.push('\n');
    publish(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documents that a page holds.
    fn data(page: &str) -> Value {
        let (_, after) = page.split_once(r#"<script type="application/json" id="data">"#).unwrap();
        serde_json::from_str(after.split_once("</script>").unwrap().0).unwrap()
    }

    #[test]
    fn the_data_is_in_the_page_whole() {
        let report = json!({ "schema_version": 1, "weights": [{ "name": "a.0.b", "survival": 0.25 }, {}] });
        let page = render(std::slice::from_ref(&report), None);
        assert_eq!(data(&page), json!({ "reports": [report], "comparison": null }));
        let both = render(std::slice::from_ref(&report), Some(&json!({ "models": [] })));
        assert_eq!(data(&both)["comparison"], json!({ "models": [] }));
    }

    #[test]
    fn hostile_names_stay_text() {
        for name in [
            "</script><script>alert(1)</script>",
            "<!--<script>",
            "]]></SCRIPT >",
            "{{data}}{{page_js}}",
            "\u{2028}\"'&lt;\\",
            "<img src=x onerror=alert(1)>",
        ] {
            let report = json!({ "weights": [{ "name": name }] });
            let page = render(std::slice::from_ref(&report), None);
            assert_eq!(data(&page)["reports"][0], report, "{name}");
            // No more markup than without the name.
            let plain = render(&[json!({ "weights": [{ "name": "a" }] })], None);
            assert_eq!(page.matches('<').count(), plain.matches('<').count(), "{name}");
        }
    }

    #[test]
    fn every_part_is_filled_and_nothing_comes_from_elsewhere() {
        let page = render(&[], None);
        for (name, texts) in PARTS {
            assert_eq!(TEMPLATE.matches(&format!("{{{{{name}}}}}")).count(), 1, "{name}");
            assert!(texts.iter().all(|text| page.contains(text)), "{name}");
        }
        assert_eq!(TEMPLATE.matches("{{").count(), PARTS.len() + 1);
        assert!(
            page.contains("default-src 'none'") && page.contains("The MIT License") && page.contains("Leon Sorokin")
        );
        for word in [" src=", "@import", "url(", "fetch(", "XMLHttpRequest", "innerHTML", " onclick", "eval("] {
            let own = page.replace(PARTS[2].1[0], "");
            assert!(!own.contains(word), "{word}");
        }
        // A script ends where the template says.
        assert_eq!(page.matches("</script").count(), 3);
    }

    #[test]
    fn a_report_is_written_by_its_name() {
        assert_eq!(form(Path::new("a/b.json")).unwrap(), Form::Json);
        assert_eq!(form(Path::new("b.HTML")).unwrap(), Form::Html);
        assert!(form(Path::new("b.txt")).is_err() && form(Path::new("b")).is_err());
    }
}
