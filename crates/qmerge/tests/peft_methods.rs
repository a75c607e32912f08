//! Merges of PEFT's methods beside LoRA, against PEFT 0.21.2 (testdata/peft-methods, made by testdata/gen/peft_methods.py).
//!
//! Tensors have PEFT's bits, or lie within some units in the last place of the largest value of their row, base or merged: in bf16 within one, in f32 within
//! what [`CLOSE`] says, with the reason.

use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::dtype::Dtype;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;

/// Methods whose merges are not PEFT's to the bit: units in f32, and why. For all others they are.
const CLOSE: &[(&str, f64, &str)] = &[
    ("adalora", 2.0, "alpha / (ranks + 1e-5) is one factor here, and in PEFT a product and a division of each value"),
    ("lokr", 2.0, "the BLAS sums products of matrices that have fewer than 16 rows or columns in another order"),
    ("oft", 4.0, "rotations are made in f64 here, and W · Rᵀ is summed in another order than the BLAS has"),
];

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/peft-methods")
}

fn cases() -> Vec<String> {
    let folders = std::fs::read_dir(data()).unwrap().map(|item| item.unwrap().file_name().into_string().unwrap());
    let mut cases: Vec<String> = folders.filter(|name| name != "bases").collect();
    cases.sort();
    cases
}

fn base(case: &str) -> PathBuf {
    data().join("bases").join(std::fs::read_to_string(data().join(case).join("base.txt")).unwrap().trim())
}

/// A tensor's type, columns and values.
fn values(checkpoint: &Checkpoint, name: &str) -> (Dtype, usize, Vec<f32>) {
    let entry = checkpoint.get(name).unwrap_or_else(|| panic!("{name} is missing in {}", checkpoint.path.display()));
    let bytes = checkpoint.read_small(entry, 1 << 30).unwrap();
    let values = match entry.dtype {
        Dtype::F32 => bytes.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect(),
        Dtype::BF16 => bytes.chunks(2).map(|x| f32::from_le_bytes([0, 0, x[0], x[1]])).collect(),
        other => panic!("{name} is {other}"),
    };
    (entry.dtype, entry.shape.last().copied().unwrap_or(1), values)
}

/// The unit in the last place of a value of that type.
fn unit(dtype: Dtype, value: f32) -> f64 {
    let digits = match dtype {
        Dtype::BF16 => 7,
        _ => 23,
    };
    2.0_f64.powi(f64::from(value.abs().max(f32::MIN_POSITIVE)).log2().floor() as i32 - digits)
}

fn merged(case: &str, weight: f64) -> (tempdir::Folder, Checkpoint) {
    let out = tempdir::Folder::new(case);
    let adapter = Adapter::open(&data().join(case).join("adapter"), weight).unwrap();
    let inputs = Inputs::new(Checkpoint::open(&base(case)).unwrap(), vec![adapter]).unwrap();
    let plan = Plan::new(&inputs, &Options::default()).unwrap_or_else(|error| panic!("{case}: {error:?}"));
    merge::run(&inputs, &plan, None, &out.0, &RunOptions::default(), &Silent)
        .unwrap_or_else(|error| panic!("{case}: {error:?}"));
    let checkpoint = Checkpoint::open(&out.0).unwrap();
    (out, checkpoint)
}

mod tempdir {
    pub(super) struct Folder(pub(super) std::path::PathBuf);

    impl Folder {
        pub(super) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("qmerge-methods-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

#[test]
fn merges_are_those_of_peft() {
    let mut failures = Vec::new();
    for case in cases() {
        let close = CLOSE.iter().find(|(method, ..)| case.starts_with(&format!("{method}-")));
        let base = Checkpoint::open(&base(&case)).unwrap();
        let want = Checkpoint::open(&data().join(&case).join("merged.safetensors")).unwrap();
        let (_folder, got) = merged(&case, 1.0);
        assert_eq!(got.entries.len(), base.entries.len(), "{case}");
        let mut worst = (0.0, String::new(), 0);
        for entry in &got.entries {
            let before = values(&base, &entry.name);
            // What PEFT did not change is not in its file.
            let (dtype, cols, want) = want.get(&entry.name).map_or(before.clone(), |_| values(&want, &entry.name));
            let (own, _, got) = values(&got, &entry.name);
            assert_eq!((own, got.len()), (dtype, want.len()), "{case} {}", entry.name);
            for ((got, want), before) in got.chunks(cols).zip(want.chunks(cols)).zip(before.2.chunks(cols)) {
                let largest = want.iter().chain(before).fold(0.0_f32, |largest, x| largest.max(x.abs()));
                for (got, want) in got.iter().zip(want) {
                    let off = f64::from((got - want).abs()) / unit(dtype, largest);
                    worst.2 += usize::from(off > 0.0);
                    if off > worst.0 {
                        (worst.0, worst.1) = (off, entry.name.clone());
                    }
                }
            }
        }
        let limit = close.map_or(0.0, |(_, units, _)| if case.ends_with("bf16") { 1.0 } else { *units });
        if std::env::var_os("SHOW").is_some() {
            println!("{case}: {} off, at most {:.3} units, in {}", worst.2, worst.0, worst.1);
        }
        if worst.0 > limit {
            failures.push(format!("{case}: {} values differ, by up to {} units, in {}", worst.2, worst.0, worst.1));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
