//! How ggml chooses scales: searches for the scale (and the minimum) of a few values under which the weighted error is least.
//!
//! Sums are from left to right, as there, so what goes side by side is not the values of a run but sixteen runs: value `i` of all of them, then `i + 1`. Each
//! function keeps the order of ggml's operations; that decides the bits.

// Arrays of a fixed length; what indexes them counts up to it.
#![allow(clippy::indexing_slicing)]

use crate::simd::lanes::{LANES, Lanes, by_lanes};

/// Values of sixteen runs of `N`: value by value, run by run.
pub(super) type Runs<const N: usize> = [[f32; LANES]; N];

/// Below this all values of a run count as zero.
const TINY: f32 = 1e-15;

/// The nearest whole number, of halves the even one; beyond 2²² as ggml has it.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff).cast_signed() - 0x0040_0000
}

by_lanes! {
    /// Runs that lie one after the other, as [`Runs`]; where there are fewer, the others are zero.
    pub(super) fn runs<const N: usize>(x: &[f32]) -> Runs<N> = runs_body;
}

#[inline(always)]
fn runs_body<V: Lanes, const N: usize>(x: &[f32]) -> Runs<N> {
    let mut runs = [[0.0; LANES]; N];
    for (at, columns) in runs.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut rows = [V::all(0.0); LANES];
        for (run, row) in rows.iter_mut().enumerate() {
            if let Some(part) = x.get(run * N + at * LANES..).and_then(<[f32]>::first_chunk) {
                *row = V::of(*part);
            }
        }
        columns.iter_mut().zip(V::turned(rows)).for_each(|(column, own)| *column = own.array());
    }
    runs
}

by_lanes! {
    /// [`Runs`] of codes, one after the other.
    pub(super) fn codes<const N: usize>(runs: &Runs<N>) -> [[u8; N]; LANES] = codes_body;
}

#[inline(always)]
fn codes_body<V: Lanes, const N: usize>(runs: &Runs<N>) -> [[u8; N]; LANES] {
    let mut codes = [[0; N]; LANES];
    for (at, columns) in runs.as_chunks::<LANES>().0.iter().enumerate() {
        let mut own = [V::all(0.0); LANES];
        own.iter_mut().zip(columns).for_each(|(own, column)| *own = V::of(*column));
        for (codes, row) in codes.iter_mut().zip(V::turned(own)) {
            let own = row.array();
            codes[at * LANES..].iter_mut().zip(own).for_each(|(code, x)| *code = x as i32 as u8);
        }
    }
    codes
}

/// Σ x², from left to right.
#[inline(always)]
pub(super) fn square_sum(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |sum, x| sum + x * x)
}

/// Σ x of each run, from left to right.
#[inline(always)]
pub(super) fn sums<const N: usize>(x: &Runs<N>) -> [f32; LANES] {
    let mut sums = [0.0; LANES];
    for x in x {
        for l in 0..LANES {
            sums[l] += x[l];
        }
    }
    sums
}

/// Elementwise.
#[inline(always)]
pub(super) fn map<const N: usize>(x: &Runs<N>, f: impl Fn(f32) -> f32) -> Runs<N> {
    let mut mapped = [[0.0; LANES]; N];
    mapped.as_flattened_mut().iter_mut().zip(x.as_flattened()).for_each(|(to, &x)| *to = f(x));
    mapped
}

/// `importance · √(square + x²)`, with a square for each run: what an importance matrix makes of weights.
#[inline(always)]
pub(super) fn weighted<const N: usize>(x: &Runs<N>, importance: &Runs<N>, squares: &[f32; LANES]) -> Runs<N> {
    let mut weights = [[0.0; LANES]; N];
    for i in 0..N {
        for l in 0..LANES {
            weights[i][l] = importance[i][l] * (squares[l] + x[i][l] * x[i][l]).sqrt();
        }
    }
    weights
}

/// The largest |x| of each run, and the first value that has it.
#[inline(always)]
pub(super) fn extremes<V: Lanes, const N: usize>(x: &Runs<N>) -> (V, V) {
    let (mut most, mut value) = (V::all(0.0), V::all(0.0));
    for x in x {
        let x = V::of(*x);
        value = V::pick(most.is_less(x.abs()), x, value);
        most = x.abs().most(most);
    }
    (most, value)
}

/// The first value of the largest |x|.
#[inline(always)]
pub(super) fn extreme(x: &[f32]) -> f32 {
    let most = most(x);
    x.iter().copied().find(|x| x.abs() == most).unwrap_or(0.0)
}

/// The same of a block, which seldom has it with both signs.
#[inline(always)]
pub(super) fn extreme_of_block(x: &[f32; 32]) -> f32 {
    let (low, high) = ends(x);
    if high == -low {
        extreme(x)
    } else if high > -low {
        high
    } else {
        low
    }
}

/// The largest |x|, side by side.
#[inline(always)]
pub(super) fn most(x: &[f32]) -> f32 {
    let (parts, rest) = x.as_chunks::<8>();
    let mut most = [0; 8];
    for part in parts {
        for l in 0..8 {
            most[l] = most[l].max(part[l].to_bits() & 0x7fff_ffff);
        }
    }
    let rest = rest.iter().map(|x| x.to_bits() & 0x7fff_ffff);
    f32::from_bits(most.into_iter().chain(rest).fold(0, u32::max))
}

/// The smallest and the largest x, side by side.
#[inline(always)]
pub(super) fn ends(x: &[f32; 32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::MAX; 8], [f32::MIN; 8]);
    for part in x.as_chunks::<8>().0 {
        for l in 0..8 {
            low[l] = if part[l] < low[l] { part[l] } else { low[l] };
            high[l] = if part[l] > high[l] { part[l] } else { high[l] };
        }
    }
    for half in [4, 2, 1] {
        for l in 0..half {
            low[l] = if low[l + half] < low[l] { low[l + half] } else { low[l] };
            high[l] = if high[l + half] > high[l] { high[l + half] } else { high[l] };
        }
    }
    (low[0], high[0])
}

/// Of zeros of both signs the first.
#[inline(always)]
pub(super) fn first_zero(end: f32, x: &[f32; 32]) -> f32 {
    if end == 0.0 { x.iter().copied().find(|&x| x == 0.0).unwrap_or(end) } else { end }
}

/// Σ w·x·level and Σ w·level² of each run, under the inverse of its scale.
#[inline(always)]
fn symmetric_sums<V: Lanes, const N: usize>(x: &Runs<N>, half: i32, weights: &Runs<N>, inverse: V) -> (V, V) {
    let (mut products, mut squares) = (V::all(0.0), V::all(0.0));
    for (x, w) in x.iter().zip(weights) {
        let (x, w) = (V::of(*x), V::of(*w));
        let level = (inverse * x).nearest(-half, half - 1);
        products = products + w * x * level;
        squares = squares + w * level * level;
    }
    (products, squares)
}

by_lanes! {
    /// Scale and codes of levels from −half to half − 1; a code is the level + half, and 0 where all is zero.
    pub(super) fn symmetric<const N: usize>(x: &Runs<N>, half: i32, weights: &Runs<N>) -> ([f32; LANES], Runs<N>) = symmetric_body;
}

#[inline(always)]
fn symmetric_body<V: Lanes, const N: usize>(x: &Runs<N>, half: i32, weights: &Runs<N>) -> ([f32; LANES], Runs<N>) {
    let nothing = V::all(0.0);
    let (most, extreme) = extremes::<V, N>(x);
    let mut inverse = V::all(-half as f32) / extreme;
    let (products, squares) = symmetric_sums(x, half, weights, inverse);
    let mut scale = V::pick(squares.differs(nothing), products / squares, nothing);
    let mut best = scale * products;
    for step in (-9..=9).filter(|&step| step != 0) {
        let tried = V::all(-(half as f32 + 0.1 * step as f32)) / extreme;
        let (products, squares) = symmetric_sums(x, half, weights, tried);
        let better = V::both(nothing.is_less(squares), (best * squares).is_less(products * products));
        let found = products / squares;
        scale = V::pick(better, found, scale);
        best = V::pick(better, found * products, best);
        inverse = V::pick(better, tried, inverse);
    }
    let zero = most.is_less(V::all(TINY));
    let mut codes = [[0.0; LANES]; N];
    for (code, x) in codes.iter_mut().zip(x) {
        let level = (inverse * V::of(*x)).nearest(-half, half - 1) + V::all(half as f32);
        *code = V::pick(zero, nothing, level).array();
    }
    (V::pick(zero, nothing, scale).array(), codes)
}

by_lanes! {
    /// Scale and codes (level + 4) of levels from −4 to 3: one level after the other moves while that helps.
    pub(super) fn by_moves<const N: usize>(x: &Runs<N>) -> ([f32; LANES], Runs<N>) = moves_body;
}

#[inline(always)]
fn moves_body<V: Lanes, const N: usize>(x: &Runs<N>) -> ([f32; LANES], Runs<N>) {
    const HALF: i32 = 4;
    let nothing = V::all(0.0);
    let (most, extreme) = extremes::<V, N>(x);
    let inverse = V::all(-HALF as f32) / extreme;
    let (mut products, mut squares, mut levels) = (nothing, nothing, [nothing; N]);
    for (x, stored) in x.iter().zip(&mut levels) {
        let x = V::of(*x);
        let (level, weight) = ((inverse * x).nearest(-HALF, HALF - 1), x * x);
        *stored = level;
        products = products + weight * x * level;
        squares = squares + weight * level * level;
    }
    let mut live = V::all(1.0);
    for _ in 0..5 {
        let mut moved = nothing;
        for (x, stored) in x.iter().zip(&mut levels) {
            let (x, old) = (V::of(*x), *stored);
            let weight = x * x;
            let product = products - weight * x * old;
            let square = squares - weight * old * old;
            let level = (x * square / product).nearest(-HALF, HALF - 1);
            let (with, squared) = (product + weight * x * level, square + weight * level * level);
            let may = V::both(nothing.is_less(live), V::both(nothing.is_less(product), level.differs(old)));
            let helps = (products * products * squared).is_less(with * with * squares);
            let better = V::both(V::both(may, nothing.is_less(squared)), helps);
            *stored = V::pick(better, level, old);
            products = V::pick(better, with, products);
            squares = V::pick(better, squared, squares);
            moved = V::pick(better, live, moved);
        }
        live = moved;
        if !V::any(nothing.is_less(live)) {
            break;
        }
    }
    let zero = most.is_less(V::all(TINY));
    let scale = V::pick(nothing.is_less(squares), products / squares, nothing);
    let codes = levels.map(|level| V::pick(zero, nothing, level + V::all(HALF as f32)).array());
    (V::pick(zero, nothing, scale).array(), codes)
}

/// How [`affine`] searches.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// The largest code.
    pub(super) top: i32,
    /// The first number that is added to it, and by how much it grows.
    pub(super) first: f32,
    pub(super) step: f32,
    /// Steps after the first.
    pub(super) steps: i32,
    /// By the error, not by its square.
    pub(super) absolute: bool,
}

by_lanes! {
    /// Scale, minimum (as it is subtracted) and codes from 0 up. The minimum is not above 0.
    pub(super) fn affine<const N: usize>(x: &Runs<N>, weights: &Runs<N>, search: Search) -> ([f32; LANES], [f32; LANES], Runs<N>) = affine_body;
}

/// (A closure would be compiled on its own, without the vectors of its caller.)
#[inline(always)]
fn loss<V: Lanes>(error: V, absolute: bool) -> V {
    if absolute { error.abs() } else { error * error }
}

#[inline(always)]
fn affine_body<V: Lanes, const N: usize>(
    x: &Runs<N>,
    weights: &Runs<N>,
    search: Search,
) -> ([f32; LANES], [f32; LANES], Runs<N>) {
    let Search { top, first, step, steps, absolute } = search;
    let nothing = V::all(0.0);
    let (mut low, mut high) = (V::of(x[0]), V::of(x[0]));
    let mut total = V::of(weights[0]);
    let mut total_x = total * low;
    for (x, w) in x.iter().zip(weights).skip(1) {
        let (x, w) = (V::of(*x), V::of(*w));
        low = x.least(low);
        high = x.most(high);
        total = total + w;
        total_x = total_x + w * x;
    }
    let low = V::pick(nothing.is_less(low), nothing, low);
    let (mut inverse, mut minimum, mut best) = (V::all(top as f32) / (high - low), low, nothing);
    let mut scale = V::all(1.0) / inverse;
    // What the codes come of: the minimum of the step before the one that found the last.
    let mut origin = low;
    for (x, w) in x.iter().zip(weights) {
        let x = V::of(*x);
        let code = (inverse * (x - low)).nearest(0, top);
        best = best + V::of(*w) * loss(scale * code + low - x, absolute);
    }
    let mut codes = [nothing; N];
    for number in 0..=steps {
        let tried = V::all(first + step * number as f32 + top as f32) / (high - minimum);
        let (mut sum, mut squares, mut products) = (nothing, nothing, nothing);
        for ((x, w), stored) in x.iter().zip(weights).zip(&mut codes) {
            let x = V::of(*x);
            let code = (tried * (x - minimum)).nearest(0, top);
            *stored = code;
            let weighted = V::of(*w) * code;
            sum = sum + weighted;
            squares = squares + weighted * code;
            products = products + weighted * x;
        }
        let determinant = total * squares - sum * sum;
        let least = (squares * total_x - sum * products) / determinant;
        let found = (total * products - total_x * sum) / determinant;
        let positive = nothing.is_less(least);
        let found = V::pick(positive, products / squares, found);
        let least = V::pick(positive, nothing, least);
        let mut errors = nothing;
        for ((x, w), code) in x.iter().zip(weights).zip(&codes) {
            errors = errors + V::of(*w) * loss(found * *code + least - V::of(*x), absolute);
        }
        let better = V::both(nothing.is_less(determinant), errors.is_less(best));
        best = V::pick(better, errors, best);
        inverse = V::pick(better, tried, inverse);
        origin = V::pick(better, minimum, origin);
        scale = V::pick(better, found, scale);
        minimum = V::pick(better, least, minimum);
    }
    let rises = low.is_less(high);
    let mut found = [[0.0; LANES]; N];
    for (code, x) in found.iter_mut().zip(x) {
        *code = V::pick(rises, (inverse * (V::of(*x) - origin)).nearest(0, top), nothing).array();
    }
    let (scale, minimum) = (V::pick(rises, scale, nothing), V::pick(rises, minimum, low));
    (scale.array(), minimum.array().map(|minimum| -minimum), found)
}

by_lanes! {
    /// The codes of values under scales and minima as they are stored, within bounds; those found before stay where a scale is 0.
    pub(super) fn again<const N: usize>(x: &Runs<N>, found: &Runs<N>, scales: &[f32; LANES], minima: &[f32; LANES], bounds: (i32, i32)) -> Runs<N> = again_body;
}

#[inline(always)]
fn again_body<V: Lanes, const N: usize>(
    x: &Runs<N>,
    found: &Runs<N>,
    scales: &[f32; LANES],
    minima: &[f32; LANES],
    (low, high): (i32, i32),
) -> Runs<N> {
    let (scales, minima) = (V::of(*scales), V::of(*minima));
    let has_scale = scales.differs(V::all(0.0));
    let mut codes = [[0.0; LANES]; N];
    for ((code, x), found) in codes.iter_mut().zip(x).zip(found) {
        let level = ((V::of(*x) + minima) / scales).nearest(low, high) - V::all(low as f32);
        *code = V::pick(has_scale, level, V::of(*found)).array();
    }
    codes
}

/// Scale and codes from 0 to `top` of values that are not negative.
#[inline(always)]
pub(super) fn positive<const N: usize>(x: &[f32; N], top: i32, weights: &[f32; N]) -> (f32, [u8; N]) {
    let most = x.iter().fold(0.0, |most: f32, &x| if x > most { x } else { most });
    if most < TINY {
        return (0.0, [0; N]);
    }
    let code = |inverse: f32, x: f32| nearest(inverse * x);
    let error = |inverse: f32, bound: i32| {
        let scale = 1.0 / inverse;
        x.iter().zip(weights).fold(0.0, |sum, (&x, w)| {
            let error = x - scale * code(inverse, x).min(bound) as f32;
            sum + w * error * error
        })
    };
    let mut inverse = top as f32 / most;
    let mut best = error(inverse, i32::MAX);
    for step in (-4..=4).filter(|&step| step != 0) {
        let tried = (0.1 * step as f32 + top as f32) / most;
        let error = error(tried, top);
        if error < best {
            (best, inverse) = (error, tried);
        }
    }
    let (mut codes, mut products, mut squares) = ([0_u8; N], 0.0, 0.0);
    for ((&x, w), stored) in x.iter().zip(weights).zip(&mut codes) {
        let level = code(inverse, x).min(top);
        *stored = level as u8;
        products += w * x * level as f32;
        squares += w * level as f32 * level as f32;
    }
    for _ in 0..5 {
        let mut moved = false;
        for ((&x, w), stored) in x.iter().zip(weights).zip(&mut codes) {
            let old = f32::from(*stored);
            let (product, square) = (products - w * x * old, squares - w * old * old);
            if !(product > 0.0 && square > 0.0) {
                continue;
            }
            let level = nearest(x * square / product).min(top);
            if level == i32::from(*stored) {
                continue;
            }
            let (with, squared) = (product + w * x * level as f32, square + w * level as f32 * level as f32);
            if with * with * squares > products * products * squared {
                (*stored, products, squares, moved) = (level as u8, with, squared, true);
            }
        }
        if !moved {
            break;
        }
    }
    (if squares > 0.0 { products / squares } else { 0.0 }, codes)
}
