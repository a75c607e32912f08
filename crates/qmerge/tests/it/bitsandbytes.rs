//! Decoding and encoding against bytes that bitsandbytes 0.50.2 wrote (testdata/bnb, see its index.json).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qmerge::dtype::Dtype;
use qmerge::formats::{self, Claim, Settings, Weight};
use qmerge::open::Checkpoint;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/bnb")
}

fn cases(kind: &str) -> Vec<(Value, Checkpoint)> {
    let index: Value = serde_json::from_str(&std::fs::read_to_string(folder().join("index.json")).unwrap()).unwrap();
    let cases: Vec<_> =
        index["cases"].as_array().unwrap().iter().filter(|case| case["kind"] == kind).cloned().collect();
    assert!(!cases.is_empty());
    cases
        .into_iter()
        .map(|case| {
            let file = folder().join(case["file"].as_str().unwrap());
            (case, Checkpoint::open(&file).unwrap())
        })
        .collect()
}

fn bytes(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    let entry = checkpoint.get(name).unwrap_or_else(|| panic!("{name} in {}", checkpoint.path.display()));
    checkpoint.read_small(entry, 1 << 30).unwrap()
}

fn claim(checkpoint: &Checkpoint, name: &str) -> Claim {
    let inventory = formats::inventory(checkpoint).unwrap();
    inventory
        .weights
        .into_iter()
        .find(|claim| claim.weight.name() == name)
        .unwrap_or_else(|| panic!("{name} in {}", checkpoint.path.display()))
}

fn parts(checkpoint: &Checkpoint, claim: &Claim) -> Vec<Vec<u8>> {
    claim.entries.iter().map(|entry| checkpoint.read_small(entry, 1 << 30).unwrap()).collect()
}

/// Decodes in chunks of `step` row steps, cutting the parts as the pipeline does.
fn decode(weight: &dyn Weight, parts: &[Vec<u8>], steps: usize) -> Vec<f32> {
    let geometry = weight.geometry();
    let mut out = vec![0.0; geometry.elements()];
    let chunk = geometry.row_step * steps;
    for start in (0..geometry.rows).step_by(chunk) {
        let rows = start..(start + chunk).min(geometry.rows);
        let cut: Vec<&[u8]> = parts
            .iter()
            .enumerate()
            .map(|(i, part)| match weight.part_rows(i, &rows) {
                Some(range) => &part[range.start as usize..range.end as usize],
                None => part,
            })
            .collect();
        weight.decode(&cut, rows.clone(), &mut out[rows.start * geometry.cols..rows.end * geometry.cols]);
    }
    out
}

/// Encodes in chunks and joins the parts.
fn encode(weight: &dyn Weight, values: &[f32], steps: usize) -> (Arc<dyn Weight>, Vec<Vec<u8>>) {
    let geometry = weight.geometry();
    let writer = weight.writer().unwrap();
    let chunk = geometry.row_step * steps;
    let ranges: Vec<_> =
        (0..geometry.rows).step_by(chunk).map(|start| start..(start + chunk).min(geometry.rows)).collect();
    let mut held = Vec::new();
    for rows in &ranges {
        writer.survey(rows.clone(), &values[rows.start * geometry.cols..rows.end * geometry.cols], &mut held);
    }
    let settled = writer.settle(&held, &[]);
    let mut joined: Vec<Vec<u8>> = settled.parts.iter().map(|part| part.clone().unwrap_or_default()).collect();
    for rows in &ranges {
        let mut out = vec![Vec::new(); joined.len()];
        let writer = settled.weight.writer().unwrap();
        writer.encode(
            &settled.parts,
            rows.clone(),
            &values[rows.start * geometry.cols..rows.end * geometry.cols],
            &mut out,
        );
        for (joined, out) in joined.iter_mut().zip(out) {
            joined.extend(out);
        }
    }
    (settled.weight, joined)
}

fn plain(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let claim = claim(checkpoint, name);
    decode(claim.weight.as_ref(), &parts(checkpoint, &claim), usize::MAX / (1 << 40))
}

/// Bits equal, but +0 = −0 (FP4's code 8 decodes to either on different hosts) and NaN = NaN.
fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            got.to_bits() == want.to_bits() || got == want || got.is_nan() && want.is_nan(),
            "{what}[{i}]: {got:e} {want:e}"
        );
    }
}

fn dtype(case: &Value) -> Dtype {
    match case["weight_dtype"].as_str().unwrap() {
        "bf16" => Dtype::BF16,
        "fp16" => Dtype::F16,
        _ => Dtype::F32,
    }
}

#[test]
fn four_bit_decodes_and_encodes_to_the_reference_bytes() {
    for (case, checkpoint) in cases("4bit") {
        let file = case["file"].as_str().unwrap();
        let base = claim(&checkpoint, "base.weight");
        let stored = parts(&checkpoint, &base);
        for steps in [1, 3, 1000].into_iter().filter(|_| checkpoint.has("base.dequant")) {
            assert_same(&decode(base.weight.as_ref(), &stored, steps), &plain(&checkpoint, "base.dequant"), file);
        }
        let shape: Vec<usize> =
            case["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let settings = Settings::default()
            .with("block_size", &case["blocksize"])
            .with("double_quant", &case["double_quant"])
            .with("quant_storage", case["quant_storage"].as_str().unwrap());
        let format = formats::by_id(case["quant_type"].as_str().unwrap()).unwrap();
        let fresh = format.create("base.weight", &shape, dtype(&case), &settings).unwrap();
        let input = plain(&checkpoint, "input");
        for steps in [1, 2, 1000] {
            let (weight, made) = encode(fresh.as_ref(), &input, steps);
            for (part, made) in weight.parts().iter().zip(&made) {
                assert_eq!(made, &bytes(&checkpoint, &part.name), "{file}: {}", part.name);
            }
        }
        // Codes under the stored scales: what decodes to a grid value packs to the same code.
        let values = decode(base.weight.as_ref(), &stored, 1000);
        let cut: Vec<&[u8]> = stored.iter().map(Vec::as_slice).collect();
        let mut packed = vec![Vec::new(); stored.len()];
        let all = 0..base.weight.geometry().rows;
        let on_grid = base.weight.on_grid().unwrap();
        on_grid.store(&cut, all.clone(), &values, None, &mut packed);
        let mut again = stored.clone();
        again[0].clone_from(&packed[0]);
        assert_same(&decode(base.weight.as_ref(), &again, 1000), &values, file);
        let grid = on_grid.grid(&cut, all);
        for (i, &x) in values.iter().enumerate() {
            let scale = grid.scales[i / grid.run].abs();
            let near = (grid.nearest(i, x) - x).abs() <= scale / 200.0;
            assert!(near || !x.is_finite() || !scale.is_finite(), "{file} {i}");
        }
    }
}

#[test]
fn merged_four_bit_weights_decode_to_the_reference_values() {
    for (case, checkpoint) in cases("4bit") {
        if checkpoint.has("merged.dequant") {
            let merged = claim(&checkpoint, "merged.weight");
            assert_eq!(merged.weight.value_dtype(), Dtype::F32);
            let got = decode(merged.weight.as_ref(), &parts(&checkpoint, &merged), 1);
            assert_same(&got, &plain(&checkpoint, "merged.dequant"), case["file"].as_str().unwrap());
        }
    }
}

#[test]
fn sixteen_bit_nested_scales_are_honoured() {
    for (case, checkpoint) in cases("4bit-nested16") {
        let base = claim(&checkpoint, "base.weight");
        let got = decode(base.weight.as_ref(), &parts(&checkpoint, &base), 1);
        assert_same(&got, &plain(&checkpoint, "base.dequant"), case["file"].as_str().unwrap());
    }
}

#[test]
fn int8_decodes_and_encodes_to_the_reference_bytes() {
    for (case, checkpoint) in cases("int8") {
        let file = case["file"].as_str().unwrap();
        let base = claim(&checkpoint, "base.weight");
        let stored = parts(&checkpoint, &base);
        assert_same(&decode(base.weight.as_ref(), &stored, 1), &plain(&checkpoint, "base.dequant"), file);
        let shape = base.weight.shape().to_vec();
        let fresh =
            formats::by_id("int8").unwrap().create("base.weight", &shape, Dtype::F32, &Settings::default()).unwrap();
        let (weight, made) = encode(fresh.as_ref(), &plain(&checkpoint, "input"), 3);
        for (part, made) in weight.parts().iter().zip(&made) {
            assert_eq!(made, &bytes(&checkpoint, &part.name), "{file}: {}", part.name);
        }
        if checkpoint.has("merged.weight") {
            let merged = claim(&checkpoint, "merged.weight");
            let got = decode(merged.weight.as_ref(), &parts(&checkpoint, &merged), 2);
            assert_same(&got, &plain(&checkpoint, "merged.dequant"), file);
        }
    }
}
