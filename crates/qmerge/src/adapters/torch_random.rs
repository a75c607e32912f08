//! Numbers as torch draws them on the CPU from a seed, for what an adapter's file leaves out.
//!
//! Mersenne Twister (MT19937), seeded as its authors do. Source: torch 2.15, `aten/src/ATen/core/{MT19937RNGEngine.h,DistributionsHelper.h}`.

use std::collections::HashMap;

use crate::dtype::Dtype;
use crate::simd::floats::round_to;

const SIZE: usize = 624;
const SHIFT: usize = 397;

/// `torch.Generator().manual_seed(seed)`.
#[derive(Debug)]
pub(super) struct Generator {
    state: Vec<u32>,
    next: usize,
}

impl Generator {
    /// Torch seeds by the lower half.
    pub(super) fn new(seed: u64) -> Self {
        let mut state = Vec::with_capacity(SIZE);
        let mut last = seed as u32;
        for number in 1..=SIZE as u32 {
            state.push(last);
            last = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(number);
        }
        Self { state, next: SIZE }
    }

    fn at(&self, at: usize) -> u32 {
        self.state.get(at % SIZE).copied().unwrap_or_default()
    }

    fn refill(&mut self) {
        for at in 0..SIZE {
            let joined = (self.at(at) & 0x8000_0000) | (self.at(at + 1) & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            let value = self.at(at + SHIFT) ^ (joined >> 1) ^ odd;
            if let Some(own) = self.state.get_mut(at) {
                *own = value;
            }
        }
        self.next = 0;
    }

    fn draw(&mut self) -> u32 {
        if self.next == SIZE {
            self.refill();
        }
        let mut x = self.at(self.next);
        self.next += 1;
        x ^= x >> 11;
        x ^= (x << 7) & 0x9d2c_5680;
        x ^= (x << 15) & 0xefc6_0000;
        x ^ (x >> 18)
    }

    /// `tensor.uniform_(from, to)` in f32. The end is no part of the range.
    pub(super) fn uniform(&mut self, from: f32, to: f32, count: usize) -> Vec<f32> {
        let width = to - from;
        // 24 bits, as many as an f32 has.
        let mut one = || (self.draw() & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0);
        let at = |x: f32| Some(x.mul_add(width, from)).filter(|x| *x != to).unwrap_or(from);
        (0..count).map(|_| at(one())).collect()
    }

    /// The same in bf16, which is drawn in f32 and rounded. What rounds up to `to`, which is no part of the range, becomes `from`.
    pub(super) fn uniform_bf16(&mut self, from: f32, to: f32, count: usize) -> Vec<f32> {
        let mut values = self.uniform(from, to, count);
        let mut ends = [from, to];
        round_to(Dtype::BF16, &mut values);
        round_to(Dtype::BF16, &mut ends);
        values.iter_mut().filter(|value| **value == ends[1]).for_each(|value| *value = ends[0]);
        values
    }

    /// `torch.normal(0, deviation, …)` in f32: by Box and Muller, 16 at a time, and one by one in f64 where there are fewer. Torch's vector code is a unit in the last
    /// place or two away from this.
    pub(super) fn normal(&mut self, deviation: f64, count: usize) -> Vec<f32> {
        const BLOCK: usize = 16;
        if count < BLOCK {
            return self.few_normal(deviation, count);
        }
        let mut values = self.uniform(0.0, 1.0, count);
        let whole = count / BLOCK * BLOCK;
        values.chunks_exact_mut(BLOCK).for_each(|block| box_muller(block, deviation));
        if whole < count {
            // The last 16 are drawn anew.
            let mut last = self.uniform(0.0, 1.0, BLOCK);
            box_muller(&mut last, deviation);
            values.truncate(count - BLOCK);
            values.extend(last);
        }
        values
    }

    fn few_normal(&mut self, deviation: f64, count: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(count + 1);
        while values.len() < count {
            let [turn, length] = [self.double(), self.double()];
            let (radius, angle) = ((-2.0 * libm::log1p(-length)).sqrt(), std::f64::consts::TAU * turn);
            values.extend([libm::cos(angle), libm::sin(angle)].map(|x| (radius * x * deviation) as f32));
        }
        values.truncate(count);
        values
    }

    /// In [0, 1), of 53 bits.
    fn double(&mut self) -> f64 {
        let (high, low) = (u64::from(self.draw()), u64::from(self.draw()));
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }

    /// The first `count` of `torch.randperm(total)`, total being below 2³².
    pub(super) fn permutation(&mut self, total: u32, count: usize) -> Vec<u32> {
        // Positions that were swapped; all others hold their own number.
        let mut moved: HashMap<u32, u32> = HashMap::new();
        let mut first = Vec::with_capacity(count);
        for at in 0..total.min(count as u32) {
            // The last number is where it is without a draw.
            let with = if at + 1 < total { at + self.draw() % (total - at) } else { at };
            let own = moved.remove(&at).unwrap_or(at);
            first.push(if with == at { own } else { moved.insert(with, own).unwrap_or(with) });
        }
        first
    }
}

/// Pairs of uniform values, the second of each half a block behind the first, become normal ones.
fn box_muller(block: &mut [f32], deviation: f64) {
    let (first, second) = block.split_at_mut(block.len() / 2);
    for (x, y) in first.iter_mut().zip(second) {
        let radius = (-2.0 * libm::log(f64::from(1.0 - *x))).sqrt();
        let angle = std::f64::consts::TAU * f64::from(*y);
        (*x, *y) = ((radius * libm::cos(angle) * deviation) as f32, (radius * libm::sin(angle) * deviation) as f32);
    }
}

/// The bound of `torch.nn.init.kaiming_uniform_` for a gain and inputs of so many.
pub(super) fn kaiming(fan: usize, gain: f64) -> f32 {
    (3.0_f64.sqrt() * (gain / (fan.max(1) as f64).sqrt())) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFORM: [u32; 4] = [0x3f08_f0af, 0x3e4b_9310, 0x3f28_c219, 0x3f28_29f6];
    const KAIMING: [u32; 4] = [0xbeb3_79cc, 0xbe8e_cc95, 0xbe1b_110d, 0xbeab_42b9];
    const PERMUTATION: [u32; 6] = [685_735, 483_336, 614_369, 115_267, 445_443, 705_042];
    const ALL: [u32; 7] = [1, 0, 4, 2, 6, 5, 3];
    const BF16: [f32; 4] = [-0.143_554_69, -0.113_769_53, -0.061_767_578, -0.136_718_75];
    const LATE: u32 = 0x3d1e_71f0;
    const NORMAL: [f32; 4] = [1.362_534_9, 1.051_668_6, 0.636_903_2, -1.488_828_2];
    /// The first of 27, some about the eleventh, where the last 16 begin, and the last.
    const NORMAL_REST: [f32; 7] =
        [1.063_669_6, 0.299_579_65, -0.988_378_2, -0.780_974_4, -0.037_268_814, 0.443_768_35, 0.316_465_84];
    const FEW_NORMAL: [f32; 5] = [0.089_455_076, 3.822_478, -0.462_061_8, 0.691_856_3, 2.636_056_4];

    /// What torch 2.15 draws.
    #[test]
    fn numbers_are_those_of_torch() {
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(Generator::new(7).uniform(0.0, 1.0, 4)), UNIFORM);
        let bound = kaiming(48, 2.0_f64.sqrt());
        assert_eq!(bits(Generator::new(3).uniform(-bound, bound, 4)), KAIMING);
        let bound = kaiming(48, (1.0_f64 / 3.0).sqrt());
        assert_eq!(Generator::new(3).uniform_bf16(-bound, bound, 4), BF16);
        // 0.144258 would be the range's end.
        assert!(Generator::new(3).uniform_bf16(-bound, bound, 576).iter().all(|x| *x < 0.14453125));
        assert_eq!(Generator::new(777).permutation(1_000_000, 6), PERMUTATION);
        assert_eq!(Generator::new(5).permutation(7, 7), ALL);
        let close = |have: &[f32], want: &[f32]| {
            assert_eq!(have.len(), want.len());
            have.iter().zip(want).for_each(|(have, want)| assert!((have - want).abs() < 1e-6, "{have} {want}"));
        };
        close(&Generator::new(42).normal(0.5_f64.sqrt(), 256)[..4], &NORMAL);
        let all = Generator::new(5).normal((1.0_f64 / 3.0).sqrt(), 27);
        close(&[&all[..3], &all[10..13], &all[26..]].concat(), &NORMAL_REST);
        close(&Generator::new(9).normal(2.0, 5), &FEW_NORMAL);
        // Beyond the first refill.
        assert_eq!(bits(Generator::new(7).uniform(0.0, 1.0, 1300))[1299], LATE);
    }
}
