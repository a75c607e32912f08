//! A stored calibration, and a merge by it: what its metadata says of the inputs, and its tensors; or, behind an odd byte, all of the file.

#![no_main]

use std::path::Path;
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::{Corpus, fuzz_target};
use qmerge::adapters::Names;
use qmerge::dtype::Dtype;
use qmerge::error::Result;
use qmerge::formats;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Data, Inputs, Method, Options, Plan};
use qmerge::round::{self, Calibration, StoredCalibration, Take};
use qmerge::write::Existing;
use serde_json::{Map, Value};

/// A base of two matrices and an adapter for both, with the metadata of a calibration of that base.
fn model() -> &'static (Inputs, Map<String, Value>) {
    static MODEL: OnceLock<(Inputs, Map<String, Value>)> = OnceLock::new();
    MODEL.get_or_init(|| {
        let config = br#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["a", "b"]}"#;
        // Bytes of text as bf16 and f32: some are about 1.
        let base = b"BF16 2x4 a.weight\ta?b?c?d?e>f>g>h>\nBF16 2x4 b.weight\ti?j?k?l?m?n?o>p>";
        let adapter = [
            &b"F32 1x4 base_model.model.a.lora_A.weight\tabc=def=ghi=jkl=\n"[..],
            b"F32 2x1 base_model.model.a.lora_B.weight\tmno=pqr=\n",
            b"F32 1x4 base_model.model.b.lora_A.weight\tstu=vwx=yza=bcd=\n",
            b"F32 2x1 base_model.model.b.lora_B.weight\tefg=hij=",
        ];
        let inputs = qmerge_fuzz::inputs([b"", base, config, &adapter.concat()]).unwrap().unwrap();
        let moments = qmerge_fuzz::folder("base").join("moments.safetensors");
        round::store(&inputs.base, &mut Nothing, Dtype::F32, &moments).unwrap();
        let written = Checkpoint::open_weights(&moments).unwrap();
        let metadata = written.metadata.iter().flatten().map(|(key, value)| (key.clone(), value.as_str().into()));
        (inputs, metadata.collect())
    })
}

struct Nothing;

impl Calibration for Nothing {
    fn about(&self) -> String {
        "nothing".into()
    }

    fn identity(&self) -> Result<String> {
        Ok(self.about())
    }

    fn each(&mut self, _: &(dyn Fn(&str) -> bool + Sync), _: &mut dyn Take) -> Result<()> {
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let (inputs, metadata) = model();
    let path = qmerge_fuzz::folder("calibration").join("moments.safetensors");
    match data.split_first() {
        Some((choice, text)) if choice % 2 == 0 => {
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
    if let Err(error) = merge(&path, inputs, data[0]) {
        qmerge_fuzz::honest(&error);
    }
    Corpus::Keep
});

/// A merge that is calibrated on the file, by the method of that number, into bf16 or int8.
fn merge(path: &Path, inputs: &Inputs, choice: u8) -> Result<()> {
    let mut stored = StoredCalibration::open(path, &Names::new(&inputs.base, &inputs.inventory.weights, &[])?)?;
    let methods: Vec<_> = round::ROUNDINGS.iter().filter(|method| method.whole().is_some()).collect();
    let choice = usize::from(choice) / 2;
    let rounding = *methods[choice % methods.len()];
    let to = if choice / methods.len() % 2 == 0 { None } else { Some(formats::by_id("int8")?) };
    let data = Data::Known(Arc::new(stored.weights().map(str::to_owned).collect()));
    let plan = Plan::new(inputs, &Options { to, rounding: Method::Named(rounding), data, ..Options::default() })?;
    let options = RunOptions { threads: 1, existing: Existing { force: true, resume: false }, ..RunOptions::default() };
    let output = path.with_file_name("out");
    merge::run(inputs, &plan, Some(&mut stored), &output, &options, &qmerge::progress::Silent).map(|_| ())
}
