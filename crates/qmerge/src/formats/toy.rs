//! A format that no one has, of all that makes formats hard: inputs as rows, groups of inputs in any order (`toy_g_idx`, which must stay), a scale and an
//! offset by group and output in tensors of the whole weight, names that are not the model's. Tests merge into it by every rounding method.

use std::ops::Range;
use std::sync::Arc;

use super::{
    Choices, Claim, Format, Geometry, Grid, Levels, Module, OnGrid, Order, Part, Settings, Settled, Weight, Writer,
    float_bytes, floats, grow, part,
};
use crate::dtype::Dtype;
use crate::error::{Result, malformed, unsupported};
use crate::open::{Entry, ModelConfig};

#[derive(Debug)]
pub(super) struct Toy;

impl Format for Toy {
    fn id(&self) -> &'static str {
        "toy"
    }

    fn about(&self) -> &'static str {
        "toy, inputs as rows"
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let leaves = ["toy_codes", "toy_scales", "toy_offsets", "toy_g_idx"];
        let Some(entries) = leaves.iter().map(|leaf| module.get(leaf).cloned()).collect::<Option<Vec<Entry>>>() else {
            return Ok(Vec::new());
        };
        let groups = module.checkpoint.read_small(&entries[3], 1 << 20)?;
        let groups: Vec<u32> = groups.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let ([inputs, outputs], [count, _]) = (&entries[0].shape[..], &entries[1].shape[..]) else {
            return Err(malformed("no matrix"));
        };
        let parts = entries
            .iter()
            .map(|e| Part { name: e.name.clone(), dtype: e.dtype, shape: Some(e.shape.clone()), bytes: e.bytes })
            .collect();
        let name = format!("{}.weight", module.path);
        let weight = ToyWeight { name, shape: vec![*outputs, *inputs], parts, groups, count: *count };
        Ok(vec![Claim { weight: Arc::new(weight), entries }])
    }

    fn create(&self, name: &str, _: &[usize], _: Dtype, _: &Settings) -> Result<Arc<dyn Weight>> {
        Err(unsupported("toy is not made from other formats").in_tensor(name))
    }

    fn describe(&self, _: &mut ModelConfig, _: &Settings, _: Option<&[String]>) -> Result<()> {
        Ok(())
    }
}

#[derive(Clone, Debug)]
struct ToyWeight {
    name: String,
    shape: Vec<usize>,
    parts: Vec<Part>,
    /// Group of each input.
    groups: Vec<u32>,
    count: usize,
}

impl ToyWeight {
    fn outputs(&self) -> usize {
        self.shape[0]
    }

    /// Scale, offset of input `i` and output `o`.
    fn pair(&self, scales: &[f32], offsets: &[f32], i: usize, o: usize) -> (f32, f32) {
        let at = self.groups[i] as usize * self.outputs() + o;
        (scales[at], offsets[at])
    }
}

fn code(value: f32, scale: f32, offset: f32) -> u8 {
    ((value - offset) / scale).round().clamp(0.0, 15.0) as u8
}

impl Weight for ToyWeight {
    fn format(&self) -> &'static str {
        "toy"
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn geometry(&self) -> Geometry {
        Geometry { rows: self.shape[1], cols: self.shape[0], row_step: 1 }
    }

    fn is_transposed(&self) -> bool {
        true
    }

    fn value_dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn part_rows(&self, part: usize, rows: &Range<usize>) -> Option<Range<u64>> {
        (part == 0).then(|| (rows.start * self.outputs()) as u64..(rows.end * self.outputs()) as u64)
    }

    fn decode(&self, parts: &[&[u8]], rows: Range<usize>, out: &mut [f32]) {
        let (scales, offsets): (Vec<f32>, Vec<f32>) =
            (floats(part(parts, 1)).collect(), floats(part(parts, 2)).collect());
        for (k, (out, code)) in out.iter_mut().zip(part(parts, 0)).enumerate() {
            let (scale, offset) = self.pair(&scales, &offsets, rows.start + k / self.outputs(), k % self.outputs());
            *out = f32::from(*code) * scale + offset;
        }
    }

    fn on_grid(&self) -> Option<&dyn OnGrid> {
        Some(self)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }
}

impl OnGrid for ToyWeight {
    fn grid(&self, parts: &[&[u8]], rows: Range<usize>) -> Grid {
        let (scales, offsets): (Vec<f32>, Vec<f32>) =
            (floats(part(parts, 1)).collect(), floats(part(parts, 2)).collect());
        let all: Vec<(f32, f32)> = rows
            .flat_map(|i| (0..self.outputs()).map(move |o| (i, o)))
            .map(|(i, o)| self.pair(&scales, &offsets, i, o))
            .collect();
        let (scales, offsets) = all.into_iter().unzip();
        Grid { offsets, ..Grid::scaled(Levels::Integers(0, 15), 1, scales, Dtype::F32) }
    }

    fn ordered(&self, parts: &[&[u8]]) -> Option<(Order, Grid)> {
        let (scales, offsets): (Vec<f32>, Vec<f32>) =
            (floats(part(parts, 1)).collect(), floats(part(parts, 2)).collect());
        let mut inputs: Vec<u32> = (0..self.groups.len() as u32).collect();
        inputs.sort_by_key(|&i| self.groups[i as usize]);
        let turned = |x: &[f32]| -> Vec<f32> {
            (0..self.outputs())
                .flat_map(|o| (0..self.count).map(move |g| (g, o)))
                .map(|(g, o)| x[g * self.outputs() + o])
                .collect()
        };
        let run = self.groups.len() / self.count;
        let grid = Grid::scaled(Levels::Integers(0, 15), run, turned(&scales), Dtype::F32);
        let grid = Grid { offsets: turned(&offsets), choices: Choices::Any, offset_choices: Choices::Any, ..grid };
        Some((Order { transposed: true, inputs: Some(inputs) }, grid))
    }

    fn store(&self, parts: &[&[u8]], rows: Range<usize>, values: &[f32], moved: Option<&Grid>, out: &mut [Vec<u8>]) {
        let (mut scales, mut offsets): (Vec<f32>, Vec<f32>) =
            (floats(part(parts, 1)).collect(), floats(part(parts, 2)).collect());
        if let Some(grid) = moved {
            for (run, (&scale, &offset)) in grid.scales.iter().zip(&grid.offsets).enumerate() {
                let at = run % self.count * self.outputs() + run / self.count;
                (scales[at], offsets[at]) = (scale, offset);
            }
            out[1] = float_bytes(&scales);
            out[2] = float_bytes(&offsets);
        }
        let codes = grow(&mut out[0], values.len());
        for (k, (value, to)) in values.iter().zip(codes).enumerate() {
            let (scale, offset) = self.pair(&scales, &offsets, rows.start + k / self.outputs(), k % self.outputs());
            *to = code(*value, scale, offset);
        }
    }
}

impl Writer for ToyWeight {
    fn renewed(&self, _: Dtype, _: &Settings) -> Result<Arc<dyn Weight>> {
        Ok(Arc::new(self.clone()))
    }

    fn needs_survey(&self) -> bool {
        true
    }

    fn survey(&self, _: Range<usize>, values: &[f32], held: &mut Vec<f32>) {
        held.extend_from_slice(values);
    }

    fn settle(&self, held: &[f32], stored: &[Option<Vec<u8>>]) -> Settled {
        let n = self.count * self.outputs();
        let (mut low, mut high) = (vec![f32::INFINITY; n], vec![f32::NEG_INFINITY; n]);
        for (k, &x) in held.iter().enumerate() {
            let at = self.groups[k / self.outputs()] as usize * self.outputs() + k % self.outputs();
            (low[at], high[at]) = (low[at].min(x), high[at].max(x));
        }
        let scales: Vec<f32> = low.iter().zip(&high).map(|(low, high)| ((high - low) / 15.0).max(1e-8)).collect();
        let parts = vec![None, Some(float_bytes(&scales)), Some(float_bytes(&low)), stored[3].clone()];
        Settled { weight: Arc::new(self.clone()), parts }
    }

    fn encode(&self, decided: &[Option<Vec<u8>>], rows: Range<usize>, values: &[f32], out: &mut [Vec<u8>]) {
        let parts: Vec<&[u8]> = decided.iter().map(|part| part.as_deref().unwrap_or_default()).collect();
        self.store(&parts, rows, values, None, out);
    }
}

mod tests {
    use std::path::{Path, PathBuf};

    use safetensors::tensor::{Dtype as StDtype, TensorView};

    use super::*;
    use crate::adapters::Adapter;
    use crate::edited::Edited;
    use crate::formats::Reader;
    use crate::merge::{self, RunOptions};
    use crate::open::Checkpoint;
    use crate::plan::{Action, Data, Inputs, Method, Options, Plan};
    use crate::progress::Silent;
    use crate::round::{self, Calibration, InputMoments, Known, Take};

    const GROUP: usize = 8;

    fn testdata(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tiny-llama").join(name)
    }

    /// The bf16 model with its linear layers in the toy format.
    fn base(folder: &Path) -> Checkpoint {
        let plain = Checkpoint::open(&testdata("bases/base-bf16")).unwrap();
        let inventory = crate::formats::inventory(&plain).unwrap();
        let mut tensors: Vec<(String, StDtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for claim in &inventory.weights {
            let (name, shape) = (claim.weight.name().to_owned(), claim.weight.shape().to_vec());
            let mut values = Vec::new();
            Reader::new(&plain, claim).unwrap().rows(&(0..claim.weight.geometry().rows), &mut values).unwrap();
            let Some(module) = name.strip_suffix("_proj.weight") else {
                let bytes = plain.read_small(&claim.entries[0], u64::MAX).unwrap();
                tensors.push((name, StDtype::BF16, shape, bytes));
                continue;
            };
            let (outputs, inputs) = (shape[0], shape[1]);
            let count = inputs / GROUP;
            // 7 and the number of groups have no common divisor, so that every group has as many inputs.
            let groups: Vec<u32> = (0..inputs).map(|i| (i * 7 % count) as u32).collect();
            let (mut low, mut high) = (vec![f32::MAX; count * outputs], vec![f32::MIN; count * outputs]);
            for (k, &x) in values.iter().enumerate() {
                let at = groups[k % inputs] as usize * outputs + k / inputs;
                (low[at], high[at]) = (low[at].min(x), high[at].max(x));
            }
            let scales: Vec<f32> = low.iter().zip(&high).map(|(low, high)| (high - low) / 15.0).collect();
            let mut codes = vec![0; values.len()];
            for (k, &x) in values.iter().enumerate() {
                let at = groups[k % inputs] as usize * outputs + k / inputs;
                codes[k % inputs * outputs + k / inputs] = code(x, scales[at], low[at]);
            }
            let of = |leaf: &str| format!("{module}_proj.toy_{leaf}");
            tensors.push((of("codes"), StDtype::U8, vec![inputs, outputs], codes));
            tensors.push((of("scales"), StDtype::F32, vec![count, outputs], float_bytes(&scales)));
            tensors.push((of("offsets"), StDtype::F32, vec![count, outputs], float_bytes(&low)));
            let groups = groups.iter().flat_map(|group| group.to_le_bytes()).collect();
            tensors.push((of("g_idx"), StDtype::I32, vec![inputs], groups));
        }
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        std::fs::copy(testdata("bases/base-bf16/config.json"), folder.join("config.json")).unwrap();
        Checkpoint::open(folder).unwrap()
    }

    /// Moments of inputs that go together, the same for all of a width.
    fn moments(features: usize) -> InputMoments {
        let x = |t: usize, i: usize| {
            (((t * 31 + i * 17) * 7919 % 1009) as f32 / 504.5 - 1.0) + if t % 3 == 0 { 1.0 } else { 0.0 }
        };
        let tokens = 3 * features;
        let value = |at: usize| {
            (0..tokens).map(|t| f64::from(x(t, at / features)) * f64::from(x(t, at % features))).sum::<f64>()
                / tokens as f64
        };
        InputMoments { features, tokens, values: (0..features * features).map(|at| value(at) as f32).collect() }
    }

    /// Each weight's inputs, one after the other.
    struct Made(Vec<(String, usize)>);

    impl Calibration for Made {
        fn about(&self) -> String {
            "made up".into()
        }

        fn identity(&self) -> Result<String> {
            Ok(String::new())
        }

        fn each(&mut self, wanted: &(dyn Fn(&str) -> bool + Sync), take: &mut dyn Take) -> Result<()> {
            for (name, features) in self.0.iter().filter(|(name, _)| wanted(name)) {
                take.known(Known { weights: vec![name.clone()], moments: moments(*features) })?;
                take.layer()?;
            }
            Ok(())
        }
    }

    #[test]
    fn every_method_rounds_a_weight_that_is_stored_in_another_order() {
        let folder = std::env::temp_dir().join(format!("qmerge-toy-{}", std::process::id()));
        let adapter = Adapter::open(&testdata("adapters/plain"), 1.0).unwrap();
        let inputs = Inputs::new(base(&folder.join("base")), vec![adapter]).unwrap();
        let toys: Vec<_> = inputs.inventory.weights.iter().filter(|claim| claim.weight.format() == "toy").collect();
        assert!(toys.len() >= 14, "{}", toys.len());
        let names: Vec<(String, usize)> =
            toys.iter().map(|claim| (claim.weight.name().to_owned(), claim.weight.shape()[1])).collect();
        let known = Data::Known(Arc::new(names.iter().map(|(name, _)| name.clone()).collect()));
        for method in round::ROUNDINGS.iter().filter(|method| !method.needs_original()) {
            let options = Options { rounding: Method::Named(*method), data: known.clone(), ..Options::default() };
            let plan = Plan::new(&inputs, &options).unwrap();
            let output = folder.join(method.id());
            let mut calibration = Made(names.clone());
            let report =
                merge::run(&inputs, &plan, Some(&mut calibration), &output, &RunOptions::default(), &Silent).unwrap();
            let merged = Checkpoint::open(&output).unwrap();
            let written = crate::formats::inventory(&merged).unwrap();
            let mut edited = 0;
            for step in &plan.steps {
                let Action::Recode(recode) = &step.action else { continue };
                let claim = written.weights.iter().find(|claim| claim.weight.name() == step.name).unwrap();
                assert_eq!(claim.weight.format(), "toy", "{}", method.id());
                let index =
                    |checkpoint: &Checkpoint, claim: &Claim| checkpoint.read_small(&claim.entries[3], 1 << 20).unwrap();
                assert_eq!(index(&merged, claim), index(&inputs.base, &recode.from), "{}", method.id());
                let all = 0..recode.from.weight.geometry().rows;
                let (mut before, mut wanted, mut after) = (Vec::new(), Vec::new(), Vec::new());
                Edited::new(&inputs, recode).unwrap().rows(&all, &mut before, &mut wanted).unwrap();
                Reader::new(&merged, claim).unwrap().rows(&all, &mut after).unwrap();
                // Stored (in, out): what the report says of the outputs is what f64 says of them.
                let (n, m) = (recode.inputs(), recode.outputs());
                let h = moments(n).values;
                let product = |x: &dyn Fn(usize) -> f64, y: &dyn Fn(usize) -> f64| -> f64 {
                    let row = |o: usize| -> f64 {
                        (0..n)
                            .map(|i| x(i * m + o) * (0..n).map(|j| f64::from(h[i * n + j]) * y(j * m + o)).sum::<f64>())
                            .sum()
                    };
                    (0..m).map(row).sum()
                };
                let delta = |k: usize| f64::from(wanted[k]) - f64::from(before[k]);
                let change = |k: usize| f64::from(after[k]) - f64::from(before[k]);
                let of = report.weights.iter().find(|weight| weight.name == step.name).unwrap();
                assert_eq!(of.rounding, method.id(), "{}", step.name);
                if method.whole().is_some() {
                    let output = product(&change, &delta) / product(&delta, &delta);
                    assert!(
                        (output - of.kept_output.unwrap()).abs() < 0.05,
                        "{} {}: {output} {of:?}",
                        method.id(),
                        step.name
                    );
                    // Methods other than the adapter's lower the error that leaving the base would have.
                    let error = |k: usize| f64::from(after[k]) - f64::from(wanted[k]);
                    let noise = product(&error, &error) / product(&delta, &delta);
                    assert!(method.id() == "adapter" || noise < 1.05, "{} {}: {noise}", method.id(), step.name);
                    edited += 1;
                } else {
                    // Under the base's scales, or those that were chosen afresh, every value is one of the two that it lies between.
                    let (checkpoint, claim) =
                        if method.keeps_scales() { (&inputs.base, &recode.from) } else { (&merged, claim) };
                    let grid = Reader::new(checkpoint, claim).unwrap().grid(&all).unwrap().unwrap();
                    for (k, (&after, &wanted)) in after.iter().zip(&wanted).enumerate() {
                        let (low, high) = grid.around(k, wanted);
                        let on = [low, high].iter().any(|x| (x - after).abs() < 1e-6);
                        assert!(on, "{} {} {k}: {after}, not {low} or {high}", method.id(), step.name);
                    }
                }
            }
            assert!(method.whole().is_none() || edited >= 2, "{}: {edited}", method.id());
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
