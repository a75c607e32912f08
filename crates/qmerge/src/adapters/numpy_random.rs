//! Numbers as numpy draws them from a seed (`numpy.random.default_rng`), for what an adapter's file leaves out.
//!
//! The generator is PCG64 (O'Neill's XSL-RR of 128 bits), its state what `SeedSequence` makes of the seed. Source: numpy 2, `random/bit_generator.pyx`, `_generator.pyx`,
//! `src/distributions/distributions.c`.

use std::collections::HashSet;

const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

/// `numpy.random.default_rng(seed)`.
#[derive(Debug)]
pub(super) struct Generator {
    state: u128,
    increment: u128,
    /// The upper half of a number of which the lower one was taken.
    rest: Option<u32>,
}

impl Generator {
    pub(super) fn new(seed: u64) -> Self {
        let [high, low, high_increment, low_increment] = seeded(seed);
        let join = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        let increment = join(high_increment, low_increment) << 1 | 1;
        let mut new = Self { state: 0, increment, rest: None };
        new.step();
        new.state = new.state.wrapping_add(join(high, low));
        new.step();
        new
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    fn draw(&mut self) -> u32 {
        if let Some(rest) = self.rest.take() {
            return rest;
        }
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        let next = folded.rotate_right((self.state >> 122) as u32);
        self.rest = Some((next >> 32) as u32);
        next as u32
    }

    /// A number from 0 to `largest`, which is below 2³² − 1: Lemire's way.
    fn up_to(&mut self, largest: u32) -> u32 {
        if largest == 0 {
            return 0;
        }
        let count = u64::from(largest) + 1;
        let threshold = (u64::from(u32::MAX - largest) % count) as u32;
        loop {
            let product = u64::from(self.draw()) * count;
            if product as u32 >= threshold {
                return (product >> 32) as u32;
            }
        }
    }

    /// `rng.shuffle(values)`, which draws as many bits as the place has until they are a place.
    pub(super) fn shuffle(&mut self, values: &mut [u32]) {
        for at in (1..values.len()).rev() {
            let mask = u32::MAX >> (at as u32).leading_zeros();
            let with = std::iter::repeat_with(|| self.draw() & mask).find(|with| *with as usize <= at).unwrap_or(0);
            values.swap(at, with as usize);
        }
    }

    /// Chooses what comes last, then what comes before, down to place `first`, as `choice` does.
    fn shuffle_from(&mut self, first: usize, values: &mut [u32]) {
        for at in (first..values.len()).rev() {
            let with = self.up_to(at as u32);
            values.swap(at, with as usize);
        }
    }

    /// `rng.choice(total, size=count, replace=False)`, of at most `total` numbers.
    pub(super) fn choice(&mut self, total: u32, count: u32) -> Vec<u32> {
        if total > 10_000 && count > total / 50 {
            let mut all: Vec<u32> = (0..total).collect();
            self.shuffle_from(((total - count) as usize).max(1), &mut all);
            return all.split_off((total - count) as usize);
        }
        // Floyd's way.
        let mut found = HashSet::new();
        let mut chosen = Vec::with_capacity(count as usize);
        for last in total - count..total {
            let drawn = self.up_to(last);
            let own = if found.insert(drawn) { drawn } else { last };
            found.insert(own);
            chosen.push(own);
        }
        self.shuffle_from(1, &mut chosen);
        chosen
    }
}

/// `SeedSequence(seed).generate_state(4, uint64)`.
fn seeded(seed: u64) -> [u64; 4] {
    let mut constant = 0x43b0_d7e5_u32;
    let mut hashed = |mut value: u32| {
        value ^= constant;
        constant = constant.wrapping_mul(0x931e_8875);
        value = value.wrapping_mul(constant);
        value ^ value >> 16
    };
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(&mut hashed);
    for from in 0..pool.len() {
        for to in (0..pool.len()).filter(|to| *to != from) {
            let [one, other] = [to, from].map(|at| pool.get(at).copied().unwrap_or_default());
            let mixed = 0xca01_f9dd_u32.wrapping_mul(one).wrapping_sub(0x4973_f715_u32.wrapping_mul(hashed(other)));
            if let Some(to) = pool.get_mut(to) {
                *to = mixed ^ mixed >> 16;
            }
        }
    }
    let mut constant = 0x8b51_f9dd_u32;
    let mut next = pool.into_iter().cycle().map(|mut value| {
        value ^= constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        value = value.wrapping_mul(constant);
        u64::from(value ^ value >> 16)
    });
    [(); 4].map(|()| next.next().unwrap_or_default() | next.next().unwrap_or_default() << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What numpy 2 draws.
    #[test]
    fn numbers_are_those_of_numpy() {
        assert_eq!(seeded(42), STATE);
        assert_eq!(Generator::new(42).choice(256, 5), FEW);
        assert_eq!(Generator::new(7).choice(12_000, 11_000)[..5], MANY);
        assert_eq!(Generator::new(1 << 40).choice(12_000, 5), LARGE_SEED);
        let mut values: Vec<u32> = (0..12).collect();
        Generator::new(3).shuffle(&mut values);
        assert_eq!(values, SHUFFLED);
        assert_eq!(Generator::new(3).choice(5, 5).len(), 5);
    }

    const STATE: [u64; 4] =
        [0x9f1e_2e6d_cd54_0ab7, 0xd578_73dc_79fb_94b6, 0x7d28_2a1b_64d4_20b7, 0x3365_7971_4692_d5ff];
    const FEW: [u32; 5] = [195, 111, 166, 22, 110];
    const MANY: [u32; 5] = [10_559, 5_154, 3_287, 8_275, 5_957];
    const LARGE_SEED: [u32; 5] = [4_554, 7_538, 11_065, 4_328, 9_522];
    const SHUFFLED: [u32; 12] = [11, 7, 2, 10, 0, 1, 4, 6, 9, 5, 3, 8];
}
