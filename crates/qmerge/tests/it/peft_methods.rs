//! Merges of PEFT's methods beside LoRA, against PEFT 0.21.2 (testdata/peft-methods, made by testdata/gen/peft_methods.py).
//!
//! Tensors have PEFT's bits, or lie within some units in the last place of the largest value of their row, base or merged: in bf16 within one, in f32 within
//! what [`CLOSE`] says, with the reason.

use std::path::{Path, PathBuf};

use qmerge::adapters::{Adapter, InputFactors, ReadOptions};
use qmerge::dtype::Dtype;
use qmerge::formats;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Silent;

use crate::written::{self, f32s};

/// Methods whose merges are not PEFT's to the bit: units in f32, and why. For all others they are.
const CLOSE: &[(&str, f64, &str)] = &[
    ("adalora", 2.0, "alpha / (ranks + 1e-5) is one factor here, and in PEFT a product and a division of each value"),
    ("lokr", 2.0, "the BLAS sums products of matrices that have fewer than 16 rows or columns in another order"),
    ("oft", 4.0, "rotations are made in f64 here, and W · Rᵀ is summed in another order than the BLAS has"),
    ("boft", 8.0, "the same, for PEFT by products of matrices of the size of the layer, one for each factor"),
    ("hra", 8.0, "a row is reflected in f64 here, and in PEFT multiplied with the product of all reflections in f32"),
    ("fourierft", 6.0, "cosines are summed here, and PEFT transforms in f32"),
    ("c3a", 2.0, "PEFT makes a circulant matrix by Fourier transforms, where here values are copied"),
    ("road", 2.0, "PEFT multiplies with a matrix of the outputs' size, and its cosines are good to a unit"),
    ("gralora", 1.0, "the products of all blocks are one product here, scaled at the end"),
    ("delora", 1.0, "lengths are summed in f64 here, and the norms of columns are in A"),
    ("vblora", 1.0, "the softmax is computed in f64 here"),
    ("waveft", 2.0, "what patches add to a value is summed in another order, and scaled at the end"),
    ("supertuning", 1.0, "places and the LoRA are added at once here, and in PEFT one after the other"),
    ("deft", 8.0, "orthonormal columns, and products with the base, are made in f64 here"),
    ("peanut", 1.5, "the network is computed in f64 here"),
    ("glora", 0.5, "W · C is summed in f64 here"),
    ("osf", 24.0, "singular vectors are found in f64 here; PEFT's, in f32, are that far from them"),
    ("tinylora", 1.0, "the matrices are mixed in f64 here, and B · R has fewer columns than the BLAS has lanes"),
    ("unilora", 1.0, "PEFT takes the root and its inverse at once"),
    ("frod", 6.0, "sums are made in f64 here"),
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
    let power = f32::from_bits(value.to_bits() & 0x7f80_0000).max(f32::MIN_POSITIVE);
    f64::from(power) * if dtype == Dtype::BF16 { 1.0 / 128.0 } else { f64::from(f32::EPSILON) }
}

fn merged(case: &str, weight: f64) -> (tempdir::Folder, Checkpoint) {
    merge(&base(case), &data().join(case).join("adapter"), weight, &format!("{case}-{weight}"))
}

/// Merges into a folder of that name.
fn merge(base: &Path, adapter: &Path, weight: f64, case: &str) -> (tempdir::Folder, Checkpoint) {
    write(base, Some((adapter, weight)), None, case)
}

/// Writes a model with or without an adapter, in another format or its own.
fn write(base: &Path, adapter: Option<(&Path, f64)>, to: Option<&str>, case: &str) -> (tempdir::Folder, Checkpoint) {
    let out = tempdir::Folder::new(case);
    let adapters = adapter.into_iter().map(|(path, weight)| Adapter::open(path, weight).unwrap()).collect();
    let inputs = Inputs::new(Checkpoint::open(base).unwrap(), adapters).unwrap();
    let to = to.map(|id| formats::by_id(id).unwrap());
    let options = Options { to, ..Options::default() };
    let plan = Plan::new(&inputs, &options).unwrap_or_else(|error| panic!("{case}: {error:?}"));
    merge::run(&inputs, &plan, None, &out.0, &RunOptions::default(), &Silent)
        .unwrap_or_else(|error| panic!("{case}: {error:?}"));
    let checkpoint = Checkpoint::open(&out.0).unwrap();
    (out, checkpoint)
}

mod tempdir {
    use std::sync::atomic::{AtomicUsize, Ordering};

    pub(super) struct Folder(pub(super) std::path::PathBuf);

    impl Folder {
        pub(super) fn new(name: &str) -> Self {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("qmerge-methods-{}-{number}-{name}", std::process::id()));
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
                    assert!(off.is_finite(), "{case} {}: {got} {want}", entry.name);
                    worst.2 += usize::from(off > 0.0);
                    if off > worst.0 {
                        (worst.0, worst.1) = (off, entry.name.clone());
                    }
                }
            }
        }
        let limit = close.map_or(0.0, |(_, units, _)| if case.ends_with("bf16") { 1.0 } else { *units });
        if worst.0 > limit {
            failures.push(format!("{case}: {} values differ, by up to {} units, in {}", worst.2, worst.0, worst.1));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Bone is what PEFT called MiSS before.
#[test]
fn bone_is_merged_as_miss() {
    for case in ["miss-llama-f32", "miss-bat-llama-f32"] {
        let folder = tempdir::Folder::new(&format!("bone-{case}"));
        std::fs::create_dir_all(&folder.0).unwrap();
        let own = data().join(case).join("adapter");
        let config = std::fs::read_to_string(own.join("adapter_config.json")).unwrap();
        let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&config).unwrap();
        config.retain(|key, _| !["mini_r", "miss_dropout"].contains(&key.as_str()));
        config.insert("peft_type".into(), "BONE".into());
        std::fs::write(folder.0.join("adapter_config.json"), serde_json::to_string(&config).unwrap()).unwrap();
        let bytes = std::fs::read(own.join("adapter_model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
        let renamed = tensors.into_iter().map(|(name, view)| (name.replace("miss_block", "bone_block"), view));
        let file = folder.0.join("adapter_model.safetensors");
        safetensors::serialize_to_file(renamed.collect::<Vec<_>>(), None, &file).unwrap();
        let (_miss, miss) = merge(&base(case), &own, 1.0, case);
        let (_bone, bone) = merge(&base(case), &folder.0, 1.0, &format!("{case}-as-bone"));
        for entry in &miss.entries {
            assert_eq!(values(&miss, &entry.name), values(&bone, &entry.name), "{case}");
        }
    }
}

/// A case's adapter whose rotations are of half the trained numbers, and whose stretches go half as far.
fn halved(case: &str) -> tempdir::Folder {
    let (own, folder) = (data().join(case).join("adapter"), tempdir::Folder::new(&format!("{case}-halves")));
    let bytes = std::fs::read(own.join("adapter_model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
    let halves = tensors.iter().map(|(name, view)| {
        let half = |x: f32| {
            let is_one_of = |markers: &[&str]| markers.iter().any(|marker| name.contains(marker));
            match () {
                () if is_one_of(&["boft_s", "road_alpha"]) => (1.0 + x) / 2.0,
                () if is_one_of(&["oft_R", "oft_embedding_R", "road_theta"]) => x / 2.0,
                // The base's own embedding comes along.
                () => x,
            }
        };
        let values = view.data().chunks(4).map(|x| half(f32::from_le_bytes(x.try_into().unwrap())));
        f32s(name.as_str(), view.shape(), values)
    });
    let config = std::fs::read_to_string(own.join("adapter_config.json")).unwrap();
    written::adapter(&folder.0, config, &halves.collect::<Vec<_>>());
    folder
}

/// A weight is a factor on the delta where something is added, and the method's own half where something is multiplied.
#[test]
fn a_weight_takes_a_part_of_an_adapter() {
    for case in cases().into_iter().filter(|case| case.ends_with("llama-f32")) {
        if case.starts_with("hra") || case.starts_with("ln-") {
            continue;
        }
        let base = Checkpoint::open(&base(&case)).unwrap();
        let parts = [0.0, 0.5, 1.0].map(|weight| merged(&case, weight));
        // A rotation by half is not half way: it is what the rotation of half the trained numbers is.
        let rotates = ["oft", "boft", "road"].iter().any(|method| case.starts_with(method));
        // Constrained ones are clipped before they are halved, so that half the numbers are another rotation.
        if case.starts_with("oft-constrained") {
            continue;
        }
        let halved = rotates.then(|| halved(&case));
        let want = halved.as_ref().map(|folder| merge(&self::base(&case), &folder.0, 1.0, &format!("{case}-halved")).1);
        let mut moved = 0;
        for entry in &base.entries {
            let before = values(&base, &entry.name).2;
            let [none, half, whole] = [0, 1, 2].map(|number: usize| values(&parts[number].1, &entry.name).2);
            assert_eq!(none, before, "{case} {}", entry.name);
            let scale = before.iter().chain(&whole).fold(0.0_f32, |most, x| most.max(x.abs()));
            let want = want.as_ref().map(|want| values(want, &entry.name).2);
            for (at, ((before, half), whole)) in before.iter().zip(&half).zip(&whole).enumerate() {
                let want = want.as_ref().map_or((before + whole) / 2.0, |want| want[at]);
                assert!((half - want).abs() <= 1e-6 * scale, "{case} {}: {before} {half} {whole}", entry.name);
                moved += usize::from(before != half);
            }
        }
        let least = if case.starts_with("beft") { 40 } else { 100 };
        assert!(moved > least, "{case}: {moved}");
    }
}

/// The first rows of what is merged into a base, in f32, are PEFT's merge of the base's decoded values (testdata/peft-quantized).
fn agrees_with_peft(base: &Path, want: &Path) -> Vec<String> {
    let (_plain, plain) = write(base, None, Some("f32"), "decoded");
    let want = Checkpoint::open_weights(want).unwrap();
    let mut cases: Vec<&str> = want.entries.iter().filter_map(|entry| Some(entry.name.split_once('/')?.0)).collect();
    cases.sort_unstable();
    cases.dedup();
    let mut failures = Vec::new();
    for case in cases {
        let adapter = Adapter::open(&data().join(case).join("adapter"), 1.0).unwrap();
        let inputs = Inputs::new(Checkpoint::open(base).unwrap(), vec![adapter]).unwrap();
        // PEFT leaves factors on inputs where they are.
        let read = ReadOptions { input_factors: InputFactors::InPlace, ..ReadOptions::default() };
        let options = Options { to: Some(formats::by_id("f32").unwrap()), read, ..Options::default() };
        let plan = Plan::new(&inputs, &options).unwrap_or_else(|error| panic!("{case}: {error:?}"));
        let out = tempdir::Folder::new(&format!("quantized-{case}"));
        merge::run(&inputs, &plan, None, &out.0, &RunOptions::default(), &Silent)
            .unwrap_or_else(|error| panic!("{case}: {error:?}"));
        let got = Checkpoint::open(&out.0).unwrap();
        let limit = CLOSE.iter().find(|(method, ..)| case.starts_with(&format!("{method}-")));
        let (mut worst, mut moved) = (0.0_f64, false);
        for entry in want.entries.iter().filter(|entry| entry.name.starts_with(&format!("{case}/"))) {
            let name = entry.name.split_once('/').unwrap().1;
            let (_, cols, want) = values(&want, &entry.name);
            let (got, before) = (values(&got, name).2, values(&plain, name).2);
            moved |= got != before;
            for ((got, want), before) in got.chunks(cols).zip(want.chunks(cols)).zip(before.chunks(cols)) {
                let largest = want.iter().chain(before).fold(0.0_f32, |largest, x| largest.max(x.abs()));
                let off = |(got, want): (&f32, &f32)| f64::from((got - want).abs()) / unit(Dtype::F32, largest);
                worst = got.iter().zip(want).map(off).fold(worst, f64::max);
            }
        }
        // Values that are all levels of a grid are not those that the limits were found with.
        if worst > limit.map_or(0.0, |(_, units, _)| (2.0 * units).max(4.0)) || !moved {
            failures.push(format!("{} {case}: up to {worst} units, changed: {moved}", base.display()));
        }
    }
    failures
}

#[test]
fn quantized_bases_get_what_peft_adds_to_their_values() {
    let root = data().join("../peft-quantized");
    let of = |format: &&str| agrees_with_peft(&root.join(format), &root.join(format!("{format}.safetensors")));
    let failures: Vec<String> = ["nf4", "int8", "gptq", "fp8"].iter().flat_map(of).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The columns that FRoD wrote the base by in training are those of the file, whatever type they are stored in.
#[test]
fn columns_in_another_type_are_those_of_the_file() {
    let failures =
        agrees_with_peft(&data().join("bases/llama-f32"), &data().join("../peft-quantized/mixed.safetensors"));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Merged into a quantized base, and into its decoded values, which are quantized afterwards.
#[test]
fn quantized_bases_take_every_method() {
    let (nf4, _) = write(&data().join("bases/llama-f32"), None, Some("nf4"), "base-nf4");
    let (plain, _) = write(&nf4.0, None, Some("f32"), "base-decoded");
    for case in cases().into_iter().filter(|case| case.ends_with("llama-f32")) {
        let adapter = data().join(&case).join("adapter");
        let (_direct, direct) = write(&nf4.0, Some((&adapter, 1.0)), None, &case);
        let (merged, _) = write(&plain.0, Some((&adapter, 1.0)), None, &case);
        let (_around, around) = write(&merged.0, None, Some("nf4"), &case);
        assert_eq!(direct.entries.len(), around.entries.len(), "{case}");
        let changed = Checkpoint::open(&data().join(&case).join("merged.safetensors")).unwrap();
        // What the adapter leaves alone is copied on the one way, and has its scales quantized anew on the other.
        let is_changed = |name: &str| changed.entries.iter().any(|entry| name.starts_with(&entry.name));
        for entry in direct.entries.iter().filter(|entry| is_changed(&entry.name)) {
            let bytes =
                |checkpoint: &Checkpoint| checkpoint.read_small(checkpoint.get(&entry.name).unwrap(), 1 << 30).unwrap();
            assert!(bytes(&direct) == bytes(&around), "{case}: {}", entry.name);
        }
    }
}
