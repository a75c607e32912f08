//! Formats of quantized checkpoints against bytes that their reference libraries wrote (testdata/formats, see its index.json).

mod damaged;
mod layouts;

use std::path::{Path, PathBuf};

use qmerge::dtype::Dtype;
use qmerge::formats::{self, Claim, Part, Settings, Settled, Weight};
use qmerge::open::{Checkpoint, Entry};
use serde_json::{Value, json};

use crate::written::{self, Tensor};
use layouts::{Layout, SETTINGS, layouts};

const MODULE: &str = "model.layers.0.mlp.up_proj";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/formats")
}

fn cases() -> Vec<Value> {
    serde_json::from_str(&std::fs::read_to_string(folder().join("index.json")).unwrap()).unwrap()
}

/// A golden case as the checkpoint that its library would have made of it.
struct Case {
    name: String,
    checkpoint: Checkpoint,
    golden: Checkpoint,
    own: PathBuf,
}

impl Drop for Case {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.own).unwrap();
    }
}

/// Cases of a kind that is refused.
const REFUSED: &[&str] = &["quanto_qint4"];

fn open_all() -> Vec<Case> {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let cases: Vec<Value> =
        cases().into_iter().filter(|case| !REFUSED.contains(&case["name"].as_str().unwrap())).collect();
    let laid = cases.iter().flat_map(|case| layouts(case).into_iter().map(move |layout| (case, layout)));
    laid.map(|(case, layout)| open(case, &layout, COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))).collect()
}

fn open(case: &Value, (names, config): &Layout, number: usize) -> Case {
    let name = case["name"].as_str().unwrap().to_owned();
    let golden = Checkpoint::open(&folder().join(format!("{name}.safetensors"))).unwrap();
    let own = std::env::temp_dir().join(format!("qmerge-{name}-{}-{number}", std::process::id()));
    written::model(&own, config, &tensors(case, names, &golden));
    Case { name, checkpoint: Checkpoint::open(&own).unwrap(), golden, own }
}

fn tensors(case: &Value, names: &[(String, String)], golden: &Checkpoint) -> Vec<Tensor> {
    names
        .iter()
        .filter_map(|(from, to)| {
            let entry = golden.get(from)?;
            let words = case["format"].as_str().unwrap().starts_with("mlx") && entry.dtype == Dtype::I32;
            let dtype = if words {
                safetensors::Dtype::U32
            } else {
                serde_json::from_value(json!(entry.dtype.name())).unwrap()
            };
            Some((to.clone(), dtype, entry.shape.clone(), golden.read_small(entry, 1 << 30).unwrap()))
        })
        .collect()
}

impl Case {
    fn claim(&self) -> Claim {
        let inventory = formats::inventory(&self.checkpoint).unwrap();
        // Who goes on with a merge knows it by this, in another process: no address may stand in it.
        assert!(!format!("{:?}", inventory.weights).contains("0x"));
        let mut coded = inventory.weights.into_iter().filter(|claim| !claim.weight.is_plain());
        let claim = coded.next().unwrap_or_else(|| panic!("{}", self.name));
        assert!(coded.next().is_none() && inventory.opaque.is_empty(), "{}", self.name);
        claim
    }

    fn parts(&self, claim: &Claim) -> Vec<Vec<u8>> {
        claim.entries.iter().map(|entry| self.checkpoint.read_small(entry, 1 << 30).unwrap()).collect()
    }

    /// What hqq made without its optimizer of a part: codes as they are, numbers in the part's type.
    fn plain(&self, part: &Part) -> Option<Vec<u8>> {
        let name = format!("plain.{}", part.name.rsplit('.').next().unwrap());
        let entry = self.golden.get(&name)?;
        let narrow = |x: f32| match part.dtype {
            Dtype::BF16 => half::bf16::from_f32(x).to_le_bytes(),
            _ => half::f16::from_f32(x).to_le_bytes(),
        };
        Some(match entry.dtype {
            Dtype::F32 => self.floats(&name)?.into_iter().flat_map(narrow).collect(),
            _ => self.golden.read_small(entry, 1 << 30).unwrap(),
        })
    }

    /// A golden tensor as numbers.
    fn floats(&self, name: &str) -> Option<Vec<f32>> {
        let entry = self.golden.get(name)?;
        let bytes = self.golden.read_small(entry, 1 << 30).unwrap();
        let pairs = || bytes.as_chunks::<2>().0.iter();
        Some(match entry.dtype {
            Dtype::BF16 => pairs().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::F16 => pairs().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
            _ => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        })
    }
}

/// Chunks of so many row steps.
fn ranges(weight: &dyn Weight, steps: usize) -> Vec<std::ops::Range<usize>> {
    chunks(weight, &[], steps).into_iter().map(|(rows, _)| rows).collect()
}

/// Chunks of so many row steps, with the bytes of each part that belong to them.
fn chunks<'p>(weight: &dyn Weight, parts: &'p [Vec<u8>], steps: usize) -> Vec<(std::ops::Range<usize>, Vec<&'p [u8]>)> {
    let geometry = weight.geometry();
    let chunk = geometry.row_step * steps;
    (0..geometry.rows)
        .step_by(chunk)
        .map(|start| {
            let rows = start..(start + chunk).min(geometry.rows);
            let cut = |(i, part): (usize, &'p Vec<u8>)| match weight.part_rows(i, &rows) {
                Some(range) => &part[range.start as usize..range.end as usize],
                None => part.as_slice(),
            };
            (rows.clone(), parts.iter().enumerate().map(cut).collect())
        })
        .collect()
}

fn decode(weight: &dyn Weight, parts: &[Vec<u8>], steps: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for (rows, cut) in chunks(weight, parts, steps) {
        let mut out = vec![f32::NAN; rows.len() * weight.geometry().cols];
        weight.decode(&cut, rows, &mut out);
        all.extend(out);
    }
    all
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Values as they are stored, from those that the model has: turned where rows are inputs, and where a stack is another way round.
fn stored(weight: &dyn Weight, values: Vec<f32>) -> Vec<f32> {
    let geometry = weight.geometry();
    if let ("gpt-oss", &[experts, outputs, inputs]) = (weight.format(), weight.shape()) {
        let all = (0..experts).flat_map(|e| (0..outputs).flat_map(move |o| (0..inputs).map(move |i| (e, o, i))));
        return all.map(|(e, o, i)| values[(e * inputs + i) * outputs + o]).collect();
    }
    if !weight.is_transposed() {
        return values;
    }
    let inputs = geometry.rows;
    (0..geometry.elements()).map(|at| values[at % geometry.cols * inputs + at / geometry.cols]).collect()
}

#[test]
fn what_is_stored_decodes_to_the_reference_s_bits() {
    let (mut seen, mut failed) = (0, Vec::new());
    for case in open_all() {
        let claim = case.claim();
        let parts = case.parts(&claim);
        let weight = claim.weight.as_ref();
        let want = bits(&stored(weight, case.floats("deq").unwrap()));
        for steps in [1, 3, 1 << 20] {
            let got = bits(&decode(weight, &parts, steps));
            let wrong = got.iter().zip(&want).position(|(got, want)| got != want && (got | want) << 1 != 0);
            if got.len() != want.len() || wrong.is_some() {
                failed.push(format!("{} {steps}: {wrong:?}", case.name));
            }
        }
        seen += 1;
    }
    assert!(failed.is_empty() && seen > 50, "{seen}: {failed:#?}");
}

/// Under the stored scales everything is where it was, in chunks of any size.
#[test]
fn what_was_decoded_is_stored_as_it_was() {
    let mut failed = Vec::new();
    for case in open_all() {
        let claim = case.claim();
        let parts = case.parts(&claim);
        let weight = claim.weight.as_ref();
        let on_grid = weight.on_grid().unwrap();
        for steps in [1, 5, 1 << 20] {
            let mut out = vec![Vec::new(); parts.len()];
            for (rows, cut) in chunks(weight, &parts, steps) {
                let mut values = vec![0.0; rows.len() * weight.geometry().cols];
                weight.decode(&cut, rows.clone(), &mut values);
                let grid = on_grid.grid(&cut, rows.clone());
                for (i, &x) in values.iter().enumerate() {
                    let near = grid.nearest(i, x);
                    if (near - x).abs() > x.abs() / 100.0 {
                        failed.push(format!("{} {i}: {x} {near}", case.name));
                        break;
                    }
                }
                on_grid.store(&cut, rows, &values, None, &mut out);
            }
            let mut again = parts.clone();
            again[0] = out[0].clone();
            assert_eq!(bits(&decode(weight, &again, 7)), bits(&decode(weight, &parts, 7)), "{}", case.name);
            for (at, part) in parts.iter().enumerate() {
                let cut = weight.part_rows(at, &(0..0)).is_some();
                // Two codes may stand for one value where it is rounded twice.
                let doubled = case.name.starts_with("mlx_affine") || case.name == "hqq_w8_axis1";
                let cut = cut && !(at == 0 && doubled);
                if cut && &out[at] != part || !cut && at > 0 && !out[at].is_empty() {
                    let wrong = out[at].iter().zip(part).position(|(out, part)| out != part);
                    failed.push(format!("{} part {at} in {steps}: {wrong:?}", case.name));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// The parts of a weight that is stored with fresh scales, surveyed and encoded in chunks; `kept` are those that it has already.
fn afresh(weight: &dyn Weight, source: &[f32], kept: &[Option<Vec<u8>>]) -> Vec<Vec<u8>> {
    let cols = weight.geometry().cols;
    let of = |rows: &std::ops::Range<usize>| &source[rows.start * cols..rows.end * cols];
    let (mut held, mut encoded) = (Vec::new(), vec![Vec::new(); weight.parts().len()]);
    let writer = weight.writer().unwrap();
    for rows in ranges(weight, 2) {
        writer.survey(rows.clone(), of(&rows), &mut held);
    }
    let Settled { weight, parts: decided } = writer.settle(&held, kept);
    for rows in ranges(weight.as_ref(), 3) {
        weight.writer().unwrap().encode(&decided, rows.clone(), of(&rows), &mut encoded);
    }
    decided.into_iter().zip(encoded).map(|(part, own)| part.unwrap_or(own)).collect()
}

/// How a case's format is asked for, where other formats are turned into it.
fn made(case: &Value) -> Option<(&'static str, Settings)> {
    let params = &case["params"];
    let number = |key: &str| params[key].as_u64().unwrap_or(0) as usize;
    let symmetric = params["symmetric"] != false;
    let grouped = Settings::default().with("block_size", number("group_size"));
    let bits = grouped.clone().with("bits", number("bits"));
    match (case["format"].as_str()?, params["format"].as_str().unwrap_or("")) {
        ("compressed-tensors", "nvfp4-pack-quantized") => Some(("ct-nvfp4", Settings::default())),
        ("compressed-tensors", "mxfp4-pack-quantized") => Some(("ct-mxfp4", Settings::default())),
        ("compressed-tensors", "pack-quantized") if symmetric && number("num_bits") == 4 => Some(("ct-int4", grouped)),
        ("compressed-tensors", "pack-quantized") if symmetric && number("num_bits") == 8 => {
            Some(("ct-int8", Settings::default()))
        }
        ("gptq", _) if case["name"].as_str()?.ends_with("_sym_g64") && matches!(number("bits"), 4 | 8) => {
            Some(("gptq", bits))
        }
        ("mlx-affine", _) => Some(("mlx", bits)),
        ("hqq", _) if params["axis"] == 1 => Some(("hqq", grouped.with("bits", number("nbits")))),
        ("fp8-block", _) if case["name"].as_str()?.contains("float") => Some(("fp8", Settings::default())),
        _ => None,
    }
}

/// What other formats are turned into has the tensors that its library writes, byte for byte, but for codes of integers that it
/// chooses by quotients of 16 bits, or, as GPTQ does, under scales before they are rounded.
#[test]
fn what_is_made_is_what_the_reference_makes() {
    let (mut seen, mut failed) = (Vec::new(), Vec::new());
    for case in cases() {
        let Some((id, settings)) = made(&case) else { continue };
        let golden = open(&case, &layouts(&case).remove(0), 1 << 21);
        let claim = golden.claim();
        let claimed = claim.weight.as_ref();
        let src = golden.golden.get("src").unwrap();
        let shape = claimed.shape().to_vec();
        let weight = formats::by_id(id).unwrap().create(claimed.name(), &shape, src.dtype, &settings).unwrap();
        assert_eq!(weight.format(), claimed.format(), "{}", golden.name);
        if weight.value_dtype() == claimed.value_dtype() {
            assert_eq!(weight.details(), claimed.details(), "{}", golden.name);
        }
        let parts = golden.parts(&claim);
        let source = stored(weight.as_ref(), golden.floats("src").unwrap());
        let is_kept = |entry: &Entry| entry.name.ends_with("global_scale");
        let kept: Vec<Option<Vec<u8>>> =
            claim.entries.iter().zip(&parts).map(|(entry, bytes)| is_kept(entry).then(|| bytes.clone())).collect();
        let written = afresh(weight.as_ref(), &source, &kept);
        for (at, (part, entry)) in weight.parts().iter().zip(&claim.entries).enumerate() {
            let own = (&part.name, part.dtype, part.shape.as_deref());
            if own != (&entry.name, entry.dtype, Some(&entry.shape)) {
                failed.push(format!("{}: {own:?}", golden.name));
            }
            // hqq's quantizer without its optimizer.
            let plain = if part.name.ends_with(".optimize") { Some(vec![0]) } else { golden.plain(part) };
            let want = plain.as_ref().unwrap_or(&parts[at]);
            let same = written[at].iter().zip(want).filter(|(got, want)| got == want).count();
            let least =
                if (id.starts_with("ct-int") || id == "gptq") && at == 0 { want.len() * 95 / 100 } else { want.len() };
            if same < least || written[at].len() != want.len() {
                failed.push(format!("{} {}: {same} of {}", golden.name, part.name, want.len()));
            }
        }
        seen.push(id);
    }
    seen.sort_unstable();
    seen.dedup();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(seen, ["ct-int4", "ct-int8", "ct-mxfp4", "ct-nvfp4", "fp8", "gptq", "hqq", "mlx"]);
}

/// Rows that are decoded together, as small ones are, have the values that each has by itself, near to what was stored.
#[test]
fn rows_decoded_together_are_rows_decoded_alone() {
    let (rows, cols) = (96, 256);
    let number = |i: usize| ((i * 7919) % 1009) as f32 * 1e-4 * (1.0 + (i / 8192) as f32) - 0.05;
    for (id, bits, noise) in [
        ("fp8", 0, 0.03),
        ("ct-int4", 0, 0.1),
        ("ct-int8", 0, 0.01),
        ("ct-nvfp4", 0, 0.15),
        ("ct-mxfp4", 0, 0.2),
        ("gptq", 4, 0.1),
        ("mlx", 4, 0.1),
        ("mlx", 6, 0.03),
        ("hqq", 4, 0.1),
        ("hqq", 3, 0.2),
        ("hqq", 8, 0.01),
    ] {
        let settings = if bits > 0 { Settings::default().with("bits", bits) } else { Settings::default() };
        let weight = formats::by_id(id).unwrap().create("m.weight", &[rows, cols], Dtype::BF16, &settings).unwrap();
        let source = stored(weight.as_ref(), (0..rows * cols).map(number).collect());
        let parts = afresh(weight.as_ref(), &source, &vec![None; weight.parts().len()]);
        let together = decode(weight.as_ref(), &parts, rows.max(cols));
        assert_eq!(together, decode(weight.as_ref(), &parts, 1), "{id} {bits}");
        let sum = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x * x)).sum::<f64>();
        let miss = sum(&mut together.iter().zip(&source).map(|(a, b)| a - b)) / sum(&mut source.iter().copied());
        assert!(miss.sqrt() < noise, "{id} {bits}: {}", miss.sqrt());
    }
}

/// Fresh scales are the reference's, and so are codes but for those that it rounds in 16 bits.
#[test]
fn fresh_scales_are_the_reference_s() {
    let mut failed = Vec::new();
    for case in open_all() {
        let (claim, source) = (case.claim(), case.floats("src"));
        let parts = case.parts(&claim);
        let weight = claim.weight.as_ref();
        // Its groups are not those that its scales were taken from.
        if case.name.contains("asym_g32_act") {
            continue;
        }
        let (Some(source), Some(_)) = (source, weight.writer()) else { continue };
        let source = stored(weight, source);
        let all = 0..weight.geometry().rows;
        // What a rounding does not choose anew is handed on.
        let kept: Vec<Option<Vec<u8>>> = (weight.parts().iter().zip(&parts))
            .enumerate()
            .map(|(at, (part, bytes))| {
                let of_hqq = SETTINGS.iter().filter(|_| case.name.starts_with("hqq"));
                let mut ends = ["g_idx", "weight_shape", "_weight_zero_point", "global_scale"].iter().chain(of_hqq);
                let is_kept = ends.any(|end| part.name.ends_with(end));
                (weight.part_rows(at, &all).is_none() && is_kept).then(|| bytes.clone())
            })
            .collect();
        let encoded = afresh(weight, &source, &kept);
        for (at, part) in weight.parts().iter().enumerate() {
            // hqq's quantizer without its optimizer.
            let plain = case.plain(part);
            let (got, want) = (&encoded[at], plain.as_ref().unwrap_or(&parts[at]));
            let same = got.iter().zip(want).filter(|(got, want)| got == want).count() as f64 / want.len() as f64;
            // Where the reference divides in 16 bits, takes scales before they are rounded, or breaks ties in its own way, some codes differ.
            let least = match case.name.as_str() {
                _ if at > 0 => 1.0,
                name if name.starts_with("fp8") => 1.0,
                "mlx_mxfp4" | "mlx_nvfp4" => 0.8,
                name if name.starts_with("mlx") || name.starts_with("hqq") => 1.0,
                _ => 0.95,
            };
            if got.len() != want.len() || same < least {
                failed.push(format!("{} {}: {same}", case.name, part.name));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
