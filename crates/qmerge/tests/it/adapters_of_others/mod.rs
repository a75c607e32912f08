//! Adapters that other programs wrote, merged, against what those programs make of them (testdata/adapters-of-others, made by scripts of testdata/gen).

mod diffusion;
mod gguf;
mod mlx;
mod tinker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::error::Result;
use qmerge::formats;
use qmerge::inspect::{AdapterInspection, Inspection, inspect};
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::written::{self, f32s};

type Values = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/adapters-of-others").join(name)
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let thread = format!("{:?}", std::thread::current().id());
        let path = std::env::temp_dir().join(format!("qmerge-others-{}-{thread}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The f32 tensors of a file.
fn floats(path: &Path) -> Values {
    let bytes = std::fs::read(path).unwrap();
    let value = |x: &[u8]| f32::from_le_bytes(x.try_into().unwrap());
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let plain = tensors.iter().filter(|(_, view)| view.dtype() == safetensors::Dtype::F32);
    plain
        .map(|(name, view)| {
            (name.to_owned(), (view.shape().to_vec(), view.data().chunks_exact(4).map(value).collect()))
        })
        .collect()
}

fn write(path: &Path, tensors: &Values) {
    let own = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| f32s(name, shape, values.iter().copied());
    written::tensors(path, &tensors.iter().map(own).collect::<Vec<_>>());
}

/// Merges in f32, and gives what the output holds.
fn merged(base: &Path, adapter: &Path, weight: f64) -> Result<Values> {
    let out = Scratch::new("out");
    let inputs = Inputs::new(Checkpoint::open(base)?, vec![Adapter::open(adapter, weight)?])?;
    let plan = Plan::new(&inputs, &Options { to: Some(formats::by_id("f32").unwrap()), ..Options::default() })?;
    let report = merge::run(&inputs, &plan, None, &out.join("merged"), &RunOptions::default(), &Silent)?;
    assert!(report.adapters[0].unused == 0);
    let mut found = Values::new();
    for item in std::fs::read_dir(out.join("merged")).unwrap() {
        let path = item.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            found.extend(floats(&path));
        }
    }
    Ok(found)
}

/// Holds the merge to the values that another program found, to a share of the largest of each tensor.
fn agrees(got: &Values, want: &Values, tolerance: f32, context: &str) {
    assert!(!want.is_empty(), "{context}");
    for (name, (shape, want)) in want {
        let (have_shape, have) = got.get(name).unwrap_or_else(|| panic!("{context}: no {name}"));
        assert_eq!(have_shape, shape, "{context}: {name}");
        let largest = want.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let worst = crate::largest(have.iter().zip(want).map(|(a, b)| (a - b).abs()));
        assert!(worst <= tolerance * largest, "{context}: {name} is off by {worst} of {largest}");
    }
}

fn inspected(path: &Path) -> AdapterInspection {
    match inspect(path).unwrap() {
        Inspection::Adapter(adapter) => adapter,
        other => panic!("{other:?}"),
    }
}

/// What is said of an adapter that cannot be merged has all these words.
fn refused(base: &Path, adapter: &Path, words: &[&str]) {
    let error = merged(base, adapter, 1.0).map(|_| ()).expect_err("it was merged");
    let text = format!("{error:?}");
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in {text}");
    }
}

/// A copy of a case's adapter with other tensors or another configuration.
fn changed(case: &str, change: impl Fn(&mut Values, &mut Value)) -> Scratch {
    let scratch = Scratch::new("changed");
    let mut tensors = floats(&data(case).join("adapter/adapters.safetensors"));
    let text = std::fs::read_to_string(data(case).join("adapter/adapter_config.json")).unwrap();
    let mut config = serde_json::from_str(&text).unwrap();
    change(&mut tensors, &mut config);
    write(&scratch.join("adapters.safetensors"), &tensors);
    if !config.is_null() {
        std::fs::write(scratch.join("adapter_config.json"), config.to_string()).unwrap();
    }
    scratch
}
