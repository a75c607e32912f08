//! `report`, and `--report` of `merge` and `compare`: JSON and pages. What a page shows is tested in a browser: tests/page.

use serde_json::{Value, json};

use crate::model::{Folder, demo, done, refused, run, stderr};

const SOURCES: [&str; 4] = ["--base", "base-nf4", "--adapter", "adapter"];
const EVAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/eval.txt");

fn json_of(folder: &Folder, name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
}

/// The documents in a page.
fn data(folder: &Folder, name: &str) -> Value {
    let page = std::fs::read_to_string(folder.join(name)).unwrap();
    let (_, after) = page.split_once(r#"<script type="application/json" id="data">"#).unwrap();
    serde_json::from_str(after.split_once("</script>").unwrap().0).unwrap()
}

#[test]
fn pages_hold_the_documents() {
    let folder = Folder::new();
    demo(folder.path());
    done(&folder, &[&["merge"], &SOURCES[..], &["-o", "out", "--report", "merge.html"]].concat());
    let report = json_of(&folder, "out/qmerge-report.json");
    assert_eq!(data(&folder, "merge.html"), json!({ "reports": [report], "comparison": null }));

    let compare = [&["compare"], &SOURCES[..], &["--text", EVAL, "--context", "64", "--windows", "2"]].concat();
    let compare = [&compare[..], &["--continuation", "4", "--merged", "out", "--report"]].concat();
    done(&folder, &[&compare[..], &["compare.json"]].concat());
    let comparison = json_of(&folder, "compare.json");
    assert_eq!(comparison["prompts"].as_array().unwrap().len(), 4);

    // In any order; a folder stands for the report in it.
    let both = json!({ "reports": [report], "comparison": comparison });
    done(&folder, &["report", "compare.json", "out/qmerge-report.json", "-o", "a.html"]);
    done(&folder, &["report", "out", "compare.json", "-o", "b.HTM"]);
    assert_eq!(data(&folder, "a.html"), both);
    assert_eq!(data(&folder, "b.HTM"), both);
    done(&folder, &["report", "compare.json", "-o", "c.html"]);
    assert_eq!(data(&folder, "c.html"), json!({ "reports": [], "comparison": comparison }));

    // Any number of merges, and a comparison anywhere among them.
    done(&folder, &["report", "out", "compare.json", "out", "-o", "d.html"]);
    assert_eq!(data(&folder, "d.html"), json!({ "reports": [report, report], "comparison": comparison }));

    // A page of `compare` shows the reports of its merges beside it; without any, the comparison alone.
    done(&folder, &[&compare[..], &["both.html"]].concat());
    let found = data(&folder, "both.html");
    assert_eq!(found["reports"], json!([report]));
    assert_eq!(found["comparison"]["models"][2]["name"], "out");
    std::fs::remove_file(folder.join("out/qmerge-report.json")).unwrap();
    done(&folder, &[&compare[..], &["alone.html"]].concat());
    assert_eq!(data(&folder, "alone.html")["reports"], json!([]));
}

#[test]
fn unfit_documents_are_named() {
    let folder = Folder::new();
    let page = |documents: &[&str], texts: &[&str]| {
        refused(&folder, &[&["report"], documents, &["-o", "page.html"]].concat(), texts);
        assert!(!folder.join("page.html").exists());
    };
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write("broken.json", "{\"weights\": [");
    write("other.json", "{\"schema_version\": 1, \"answer\": \"yes\", \"weights\": []}");
    write("list.json", "[]");
    write("newer.json", "{\"schema_version\": 2, \"weights\": [], \"output\": {}}");
    write("report.json", "{\"schema_version\": 1, \"weights\": [], \"output\": {}}");
    write("deep.json", &"[".repeat(100_000));
    page(&["broken.json"], &["broken.json", "not JSON"]);
    page(&["deep.json"], &["deep.json", "not JSON"]);
    page(&["other.json"], &["other.json", "neither", "compare --json"]);
    page(&["list.json"], &["list.json", "neither"]);
    page(&["newer.json"], &["newer.json", "schema_version is 2"]);
    write("compare.json", "{\"schema_version\": 1, \"models\": [], \"windows\": 1}");
    page(&["report.json", "compare.json", "compare.json"], &["two comparisons", "compare all merges at once"]);
    refused(&folder, &["report", "report.json", "-o", "page.pdf"], &["page.pdf", ".json or .html"]);
    refused(&folder, &["report", "report.json", "-o", "report.json"], &["report.json", "written as .html"]);
    let output = run(folder.path(), &["report", "nowhere.json", "-o", "page.html"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    // A folder is made as for other outputs, where it can be.
    let output = run(folder.path(), &["report", "report.json", "-o", "new/folder/page.html"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = run(folder.path(), &["report", "report.json", "-o", "report.json/page.html"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}
