//! A stored calibration: what its metadata says of the inputs, and its tensors; or, behind a byte that is not 0, all of the file.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use qmerge::dtype::Dtype;
use qmerge::error::Result;
use qmerge::open::Checkpoint;
use qmerge::round::{self, Calibration, Known, Metric, Stored};
use serde_json::{Map, Value};

/// A base of two matrices, with the metadata of a calibration of it.
fn base() -> &'static (Checkpoint, Map<String, Value>) {
    static BASE: OnceLock<(Checkpoint, Map<String, Value>)> = OnceLock::new();
    BASE.get_or_init(|| {
        let folder = qmerge_fuzz::folder("base");
        let (model, moments) = (folder.join("model.safetensors"), folder.join("moments.safetensors"));
        qmerge_fuzz::tensors(b"F32 2x4 a.weight\nF32 2x4 b.weight", Map::new(), &model).unwrap();
        let base = Checkpoint::open(&model).unwrap();
        round::store(&base, &mut Nothing, Dtype::F32, &moments).unwrap();
        let written = Checkpoint::open_weights(&moments).unwrap();
        let metadata = written.metadata.iter().flatten().map(|(key, value)| (key.clone(), value.as_str().into()));
        (base, metadata.collect())
    })
}

struct Nothing;

impl Calibration for Nothing {
    fn about(&self) -> String {
        "nothing".into()
    }

    fn each(
        &mut self,
        _: &(dyn Fn(&str) -> bool + Sync),
        _: &mut (dyn FnMut(Vec<Known>) -> Result<()> + Send),
    ) -> Result<()> {
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let (base, metadata) = base();
    let path = qmerge_fuzz::folder("calibration").join("moments.safetensors");
    match data.split_first() {
        Some((0, text)) => {
            let [inputs, tensors] = qmerge_fuzz::parts(text);
            let mut metadata = metadata.clone();
            metadata.insert("qmerge.inputs".into(), String::from_utf8_lossy(inputs).into());
            if qmerge_fuzz::tensors(tensors, metadata, &path).is_none() {
                return Corpus::Reject;
            }
        }
        Some((_, bytes)) => std::fs::write(&path, bytes).unwrap(),
        None => return Corpus::Reject,
    }
    if let Err(error) = take(&path, base) {
        qmerge_fuzz::honest(&error);
    }
    Corpus::Keep
});

fn take(path: &Path, base: &Checkpoint) -> Result<()> {
    Stored::open(path, base)?.each(&|_| true, &mut |known| {
        for Known { weights, moments } in known {
            assert!(!weights.is_empty());
            Metric::new(moments)?;
        }
        Ok(())
    })
}
