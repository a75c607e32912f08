//! Fresh scales and zeros from the least and the largest value of each group, as the libraries' quantizers take them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::{Packed, Packing, SCALES, ZEROS};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::formats::scaled::{number_bytes, numbers};
use crate::formats::{Settings, Settled, Weight, Writer};
use crate::simd::codes::round_even;
use crate::simd::floats::round_one;

/// What a pass over some rows has found: for each group that they have, its number, then least and largest value of each output.
type Extremes = BTreeMap<usize, Vec<[f32; 2]>>;

impl Packed {
    fn add(&self, found: &mut Extremes, group: usize, output: usize, [low, high]: [f32; 2]) {
        let outputs = self.outputs();
        let of_group = found.entry(group).or_insert_with(|| vec![[f32::INFINITY, f32::NEG_INFINITY]; outputs]);
        if let Some([least, largest]) = of_group.get_mut(output) {
            (*least, *largest) = (least.min(low), largest.max(high));
        }
    }

    /// True if what is stored has its zeros in the middle throughout: then it stays so.
    fn is_symmetric(&self, stored: &[Option<Vec<u8>>]) -> bool {
        let Some(Some(bytes)) = stored.get(ZEROS) else { return self.packing == Packing::Down };
        let middle = (1_u32 << (self.bits - 1)) as f32;
        (0..self.count).all(|group| {
            self.zeros.of_group(bytes, self.bits, self.outputs(), group).iter().all(|&zero| zero == middle)
        })
    }

    /// The group of each input, as it is stored.
    fn index(&self) -> Vec<u8> {
        self.groups.iter().flat_map(|&group| (group as i32).to_le_bytes()).collect()
    }

    /// Scale and zero for values between two, with a range that is the same on both sides of 0 or not.
    fn pair(&self, [low, high]: [f32; 2], symmetric: bool) -> (f32, f32) {
        let most = self.most();
        if self.packing == Packing::Across {
            let round = |x: f32| round_one(self.values, x);
            let scale = round(round(high - low).max(1e-5) / most);
            return (scale, (-round_even(round(low / scale))).clamp(0.0, most));
        }
        let (mut low, mut high) = (low.min(0.0), high.max(0.0));
        if symmetric {
            high = high.max(-low);
            low = -high;
        }
        if low == 0.0 && high == 0.0 {
            (low, high) = (-1.0, 1.0);
        }
        if symmetric {
            return ((high - low) / most, (most + 1.0) / 2.0);
        }
        let scale = (high - low) / most;
        let zero = round_even(-low / scale);
        // Tools read a zero that is stored as −1 in different ways: one level less, and none of them errs.
        if zero < self.zeros.least() { (high / (most - 1.0), 1.0) } else { (scale, zero) }
    }
}

impl Writer for Packed {
    fn renewed(&self, _: Dtype, _: &Settings) -> Result<Arc<dyn Weight>> {
        Ok(Arc::new(self.clone()))
    }

    fn needs_survey(&self) -> bool {
        true
    }

    fn survey(&self, rows: Range<usize>, values: &[f32], held: &mut Vec<f32>) {
        let mut found = Extremes::new();
        for (input, values) in rows.zip(values.chunks_exact(self.outputs().max(1))) {
            for (output, &x) in values.iter().enumerate() {
                self.add(&mut found, self.group(input), output, [x, x]);
            }
        }
        for (group, bounds) in found {
            held.push(f32::from_bits(group as u32));
            held.extend(bounds.as_flattened());
        }
    }

    fn settle(&self, held: &[f32], stored: &[Option<Vec<u8>>]) -> Settled {
        let mut found = Extremes::new();
        for of_group in held.chunks_exact(1 + 2 * self.outputs()) {
            let Some((group, bounds)) = of_group.split_first() else { continue };
            for (output, &bounds) in bounds.as_chunks().0.iter().enumerate() {
                self.add(&mut found, group.to_bits() as usize, output, bounds);
            }
        }
        let symmetric = self.is_symmetric(stored);
        let (mut scales, mut zero_bytes) = (Vec::new(), Vec::new());
        for group in 0..self.count {
            let nothing = vec![[0.0; 2]; self.outputs()];
            let bounds = found.get(&group).unwrap_or(&nothing);
            let (own, zeros): (Vec<f32>, Vec<f32>) = bounds.iter().map(|&bounds| self.pair(bounds, symmetric)).unzip();
            scales.extend(own);
            self.zeros.put_group(&zeros, self.bits, &mut zero_bytes);
        }
        let scales = number_bytes(self.scales_type(), &scales);
        debug_assert_eq!(numbers(self.scales_type(), &scales).len(), self.count * self.outputs());
        let mut parts: Vec<Option<Vec<u8>>> = vec![None; self.parts.len()];
        for (at, part) in parts.iter_mut().enumerate().skip(1) {
            *part = match at {
                ZEROS => Some(zero_bytes.clone()),
                SCALES => Some(scales.clone()),
                _ => stored.get(at).cloned().flatten().or_else(|| Some(self.index())),
            };
        }
        Settled { weight: Arc::new(self.clone()), parts }
    }

    fn encode(&self, decided: &[Option<Vec<u8>>], rows: Range<usize>, values: &[f32], out: &mut [Vec<u8>]) {
        let views: Vec<&[u8]> = decided.iter().map(|part| part.as_deref().unwrap_or_default()).collect();
        if let Some(codes) = out.first_mut() {
            self.pack(&views, rows, values, codes);
        }
    }
}
