//! Models with an adapter of PEFT's methods beside LoRA kept apart: logits against those that PEFT computed without merging
//! (`qmerge/testdata/gen/peft_methods.py`).

use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options as PlanOptions, Plan};
use qmerge_run::tensors::Tensors;
use qmerge_run::{Model, Options, Unwatched};

const TOKENS: [u32; 8] = [1, 5, 2, 40, 7, 30, 11, 3];
/// Logits go up to about 1, and PEFT's own merge moves them by up to 1e-6.
const TOLERANCE: f32 = 3e-6;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../qmerge/testdata/peft-methods")
}

fn logits(model: &Model<'_>) -> Vec<f32> {
    let hidden = model.hidden(&[&TOKENS], &mut Unwatched).unwrap();
    let mut logits = Vec::new();
    model.logits(&hidden, 0..TOKENS.len(), &mut logits).unwrap();
    logits
}

#[test]
fn adapters_kept_apart_do_what_they_do_in_peft() {
    let folders = std::fs::read_dir(data()).unwrap().map(|item| item.unwrap().path());
    let mut count = 0;
    for case in folders.filter(|path| path.to_string_lossy().ends_with("f32") && path.join("base.txt").exists()) {
        let bytes = std::fs::read(case.join("merged.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let want = tensors.tensor("logits").unwrap();
        let vocab = want.shape()[1];
        let want: Vec<f32> = want.data().chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
        let base = data().join("bases").join(std::fs::read_to_string(case.join("base.txt")).unwrap().trim());
        let adapter = Adapter::open(&case.join("adapter"), 1.0).unwrap();
        let inputs = Inputs::new(Checkpoint::open(&base).unwrap(), vec![adapter]).unwrap();
        let plan = Plan::new(&inputs, &PlanOptions::default()).unwrap();
        let options = || Options { threads: 1, held: None, progress: None };
        let (with, without) = (Tensors::new(&inputs, Some(&plan)), Tensors::new(&inputs, None));
        let got = logits(&Model::new(&with, options()).unwrap());
        let bare = logits(&Model::new(&without, options()).unwrap());
        let off = |logits: &[f32]| {
            let at = |t: usize, v: usize| (logits[v * TOKENS.len() + t] - want[t * vocab + v]).abs();
            let all = (0..TOKENS.len()).flat_map(|t| (0..vocab).map(move |v| (t, v))).map(|(t, v)| at(t, v));
            all.inspect(|off| assert!(!off.is_nan())).fold(0.0, f32::max)
        };
        let name = case.file_name().unwrap().to_string_lossy();
        assert!(off(&got) < TOLERANCE, "{name}: {:e}", off(&got));
        assert!(off(&bare) > 1000.0 * TOLERANCE, "{name}: {:e}", off(&bare));
        count += 1;
    }
    assert!(count > 0);
}
