//! Writes the first inputs of the targets `plan`, `run`, `formats`, `arithmetic`, `calibration`, `imatrix`, `text` and `gguf_tokenizer` into `corpus`,
//! from the small models of the tests.

use std::path::{Path, PathBuf};

use qmerge::formats::{self, Settings};
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{EXPORTS, Inputs, Options, Plan};
use qmerge::progress::Silent;
use qmerge::write::{Existing, path_beside};
use qmerge_fuzz::END;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = root.join("../crates");
    for case in folders(&tests.join("qmerge-run/testdata/tiny")) {
        let base = match std::fs::read_to_string(case.join("base.txt")) {
            Ok(name) => case.with_file_name(name.trim()),
            Err(_) => case.clone(),
        };
        for config in ["config.json", "config.v4.json"] {
            if base.join(config).is_file() {
                let text = seed(&base, config, &case.join("adapter"));
                write(root, "run", &case, config, &text);
                write(root, "plan", &case, config, &[&[0xff], text.as_slice()].concat());
            }
        }
    }
    for case in folders(&tests.join("qmerge/testdata/peft-cases")) {
        for choice in [0xff, 0, 1, 2] {
            let text = seed(&case.join("base"), "config.json", &case.join("adapter"));
            write(root, "plan", &case, &choice.to_string(), &[&[choice], text.as_slice()].concat());
            write(root, "arithmetic", &case, &choice.to_string(), &[&[choice], text.as_slice()].concat());
        }
    }
    formats(root, &tests.join("qmerge/testdata/tiny-llama/bases/base-bf16"));
    let imatrix = std::fs::read(tests.join("qmerge/testdata/gguf/made/imatrix.gguf")).expect("an importance matrix");
    write(root, "imatrix", Path::new("gguf"), "made", &imatrix);
    for case in folders(&tests.join("qmerge/testdata/gguf/made")) {
        file(root, &case);
        let [tokenizer, config] = ["tokenizer.json", "tokenizer_config.json"].map(|name| json(&case.join(name)));
        write(root, "text", &case, "hello", &[&tokenizer, &[END][..], &config, &[END], b"Hello, you."].concat());
    }
    let inputs = br#"[{"layer":0,"tokens":7,"weights":["a.weight"]},{"layer":0,"tokens":7,"weights":["b.weight"]}]"#;
    let moments =
        b"F32 4x4 a.weight\tabc?def=ghi=jkl=def=mno?pqr=stu=ghi=pqr=vwx?yza=jkl=stu=yza=bcd?\nBF16 4x4 b.weight\ta?";
    for choice in [0, 2, 4, 6, 8, 10] {
        let text = [&[choice], &inputs[..], &[END], moments].concat();
        write(root, "calibration", Path::new("two"), &choice.to_string(), &text);
    }
    write(root, "calibration", Path::new("none"), "bytes", &[&[1, 2, 0, 0, 0, 0, 0, 0, 0], &b"{}"[..]].concat());
}

/// A small model in every format that a merge writes.
fn formats(root: &Path, base: &Path) {
    for format in formats::FORMATS.iter().copied().filter(|format| format.is_made()) {
        let inputs = Inputs::new(Checkpoint::open(base).expect("a model"), Vec::new()).expect("a model");
        // Its layers are narrow: some formats' groups fit only where they are asked to be small.
        let small = Settings::default().with("block_size", 64);
        let plan = [Settings::default(), small].into_iter().find_map(|settings| {
            Plan::new(&inputs, &Options { to: Some(format), settings, ..Options::default() }).ok()
        });
        let plan = plan.expect("a plan");
        let options = RunOptions { existing: Existing { force: true, resume: false }, ..RunOptions::default() };
        let output = qmerge_fuzz::folder("written").join("model");
        merge::run(&inputs, &plan, None, &output, &options, &Silent).expect("a model");
        let mut text = json(&output.join("config.json"));
        text.push(END);
        text.extend(lines(Checkpoint::open(&output).ok()));
        write(root, "formats", Path::new("tiny"), format.id(), &text);
    }
}

/// The GGUF file that a model becomes, with its tokenizer.
fn file(root: &Path, case: &Path) {
    let folder = root.join("corpus/gguf_tokenizer");
    std::fs::create_dir_all(&folder).expect("a folder for the corpus");
    let name = case.file_name().and_then(|name| name.to_str()).expect("a name");
    let inputs = Inputs::new(Checkpoint::open(case).expect("a model"), Vec::new()).expect("a model");
    let export = EXPORTS.iter().copied().find(|export| export.id() == "q8_0");
    let plan = Plan::new(&inputs, &Options { export, ..Options::default() }).expect("a plan");
    let options = RunOptions { existing: Existing { force: true, resume: false }, ..RunOptions::default() };
    let output = folder.join(format!("{name}.gguf"));
    merge::run(&inputs, &plan, None, &output, &options, &Silent).expect("a file");
    std::fs::remove_file(path_beside(&output)).expect("a report");
}

fn folders(of: &Path) -> Vec<PathBuf> {
    let items = std::fs::read_dir(of).expect("test data").map(|item| item.expect("test data").path());
    items.filter(|path| path.is_dir()).collect()
}

fn write(root: &Path, target: &str, case: &Path, variant: &str, text: &[u8]) {
    let folder = root.join("corpus").join(target);
    std::fs::create_dir_all(&folder).expect("a folder for the corpus");
    let name = case.file_name().and_then(|name| name.to_str()).expect("a name");
    std::fs::write(folder.join(format!("{name}-{variant}")), text).expect("room for the corpus");
}

/// The four parts of a base and an adapter. Configurations lose their spaces, and tensors all data but that of JSON.
fn seed(base: &Path, config: &str, adapter: &Path) -> Vec<u8> {
    let mut text = json(&base.join(config));
    text.push(END);
    text.extend(lines(Checkpoint::open(base).ok()));
    text.push(END);
    text.extend(json(&adapter.join("adapter_config.json")));
    text.push(END);
    let weights = ["adapter_model.safetensors", "adapter_model.bin"].map(|name| adapter.join(name));
    text.extend(lines(weights.iter().find_map(|path| Checkpoint::open_weights(path).ok())));
    text
}

fn json(path: &Path) -> Vec<u8> {
    let Ok(text) = std::fs::read(path) else { return Vec::new() };
    let mut value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    value.to_string().into_bytes()
}

fn lines(checkpoint: Option<Checkpoint>) -> Vec<u8> {
    let mut text = Vec::new();
    let Some(checkpoint) = checkpoint else { return text };
    for entry in &checkpoint.entries {
        let shape: Vec<String> = entry.shape.iter().map(usize::to_string).collect();
        text.extend(format!("{} {} {}", entry.dtype.name(), shape.join("x"), entry.name).into_bytes());
        let data = checkpoint.read_small(entry, 1024).unwrap_or_default();
        if data.starts_with(b"{") {
            text.push(b'\t');
            text.extend(data);
        }
        text.push(b'\n');
    }
    text
}
