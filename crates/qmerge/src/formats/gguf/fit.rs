//! How ggml chooses scales: searches for the scale (and the minimum) of a few values under which the weighted error is least.
//!
//! Sums are from left to right, as there, so what goes side by side is not the values of a run but `L` runs: value `i` of all of them, then `i + 1`. Each
//! function keeps the order of ggml's operations; that decides the bits.

// Arrays of a fixed length; what indexes them counts up to it.
#![allow(clippy::indexing_slicing)]

/// Values of `L` runs of `N`: value by value, run by run.
pub(super) type Runs<const N: usize, const L: usize> = [[f32; L]; N];

/// Below this all values of a run count as zero.
const TINY: f32 = 1e-15;

/// The nearest whole number, of halves the even one; beyond 2²² as ggml has it.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff).cast_signed() - 0x0040_0000
}

/// Runs that lie one after the other, as [`Runs`]; where there are fewer, the others are zero.
#[inline(always)]
pub(super) fn runs<const N: usize, const L: usize>(x: &[f32]) -> Runs<N, L> {
    let mut runs = [[0.0; L]; N];
    for (l, run) in x.chunks_exact(N).enumerate().take(L) {
        for (i, &x) in run.iter().enumerate() {
            runs[i][l] = x;
        }
    }
    runs
}

/// [`Runs`] of codes, one after the other.
#[inline(always)]
pub(super) fn codes<const N: usize, const L: usize, const M: usize>(runs: &Runs<N, L>) -> [u8; M] {
    let mut codes = [0; M];
    for (l, run) in codes.chunks_exact_mut(N).enumerate().take(L) {
        for (i, code) in run.iter_mut().enumerate() {
            *code = runs[i][l] as u8;
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
pub(super) fn sums<const N: usize, const L: usize>(x: &Runs<N, L>) -> [f32; L] {
    let mut sums = [0.0; L];
    for x in x {
        for l in 0..L {
            sums[l] += x[l];
        }
    }
    sums
}

/// Elementwise.
#[inline(always)]
pub(super) fn map<const N: usize, const L: usize>(x: &Runs<N, L>, f: impl Fn(f32) -> f32) -> Runs<N, L> {
    let mut mapped = [[0.0; L]; N];
    for (to, x) in mapped.iter_mut().zip(x) {
        for l in 0..L {
            to[l] = f(x[l]);
        }
    }
    mapped
}

/// `importance · √(square + x²)`, with a square for each run: what an importance matrix makes of weights.
#[inline(always)]
pub(super) fn weighted<const N: usize, const L: usize>(
    x: &Runs<N, L>,
    importance: &Runs<N, L>,
    squares: &[f32; L],
) -> Runs<N, L> {
    let mut weights = [[0.0; L]; N];
    for i in 0..N {
        for l in 0..L {
            weights[i][l] = importance[i][l] * (squares[l] + x[i][l] * x[i][l]).sqrt();
        }
    }
    weights
}

/// The largest |x| of each run, and the first value that has it.
#[inline(always)]
pub(super) fn extremes<const N: usize, const L: usize>(x: &Runs<N, L>) -> ([f32; L], [f32; L]) {
    let (mut most, mut value) = ([0.0; L], [0.0; L]);
    for x in x {
        for l in 0..L {
            let larger = x[l].abs() > most[l];
            most[l] = if larger { x[l].abs() } else { most[l] };
            value[l] = if larger { x[l] } else { value[l] };
        }
    }
    (most, value)
}

/// The first value of the largest |x|.
#[inline(always)]
pub(super) fn extreme(x: &[f32]) -> f32 {
    let most = most(x);
    x.iter().copied().find(|x| x.abs() == most).unwrap_or(0.0)
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

/// The smallest and the largest x, side by side. Of zeros of both signs the first counts.
#[inline(always)]
pub(super) fn ends(x: &[f32; 32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::MAX; 8], [f32::MIN; 8]);
    for part in x.as_chunks::<8>().0 {
        for l in 0..8 {
            low[l] = if part[l] < low[l] { part[l] } else { low[l] };
            high[l] = if part[l] > high[l] { part[l] } else { high[l] };
        }
    }
    let low = low.iter().fold(f32::MAX, |low, &x| if x < low { x } else { low });
    let high = high.iter().fold(f32::MIN, |high, &x| if x > high { x } else { high });
    let first = |end: f32| if end == 0.0 { x.iter().copied().find(|&x| x == 0.0).unwrap_or(end) } else { end };
    (first(low), first(high))
}

/// The level nearest to a number, from −half to half − 1.
#[inline(always)]
fn level(x: f32, half: i32) -> f32 {
    nearest(x).clamp(-half, half - 1) as f32
}

/// Σ w·x·level and Σ w·level² of each run, under the inverse of its scale.
#[inline(always)]
fn symmetric_sums<const N: usize, const L: usize>(
    x: &Runs<N, L>,
    half: i32,
    weights: &Runs<N, L>,
    inverse: &[f32; L],
) -> ([f32; L], [f32; L]) {
    let (mut products, mut squares) = ([0.0; L], [0.0; L]);
    for (x, w) in x.iter().zip(weights) {
        for l in 0..L {
            let level = level(inverse[l] * x[l], half);
            products[l] += w[l] * x[l] * level;
            squares[l] += w[l] * level * level;
        }
    }
    (products, squares)
}

/// Scale and codes of levels from −half to half − 1; a code is the level + half, and 0 where all is zero.
#[inline(always)]
pub(super) fn symmetric<const N: usize, const L: usize>(
    x: &Runs<N, L>,
    half: i32,
    weights: &Runs<N, L>,
) -> ([f32; L], Runs<N, L>) {
    let (most, extreme) = extremes(x);
    let mut inverse = extreme.map(|extreme| -half as f32 / extreme);
    let (products, squares) = symmetric_sums(x, half, weights, &inverse);
    let (mut scale, mut best) = ([0.0; L], [0.0; L]);
    for l in 0..L {
        scale[l] = if squares[l] == 0.0 { 0.0 } else { products[l] / squares[l] };
        best[l] = scale[l] * products[l];
    }
    for step in (-9..=9).filter(|&step| step != 0) {
        let tried = extreme.map(|extreme| -(half as f32 + 0.1 * step as f32) / extreme);
        let (products, squares) = symmetric_sums(x, half, weights, &tried);
        for l in 0..L {
            let better = squares[l] > 0.0 && products[l] * products[l] > best[l] * squares[l];
            let found = products[l] / squares[l];
            scale[l] = if better { found } else { scale[l] };
            best[l] = if better { found * products[l] } else { best[l] };
            inverse[l] = if better { tried[l] } else { inverse[l] };
        }
    }
    let mut codes = [[0.0; L]; N];
    for i in 0..N {
        for l in 0..L {
            codes[i][l] = if most[l] < TINY { 0.0 } else { level(inverse[l] * x[i][l], half) + half as f32 };
        }
    }
    for l in 0..L {
        scale[l] = if most[l] < TINY { 0.0 } else { scale[l] };
    }
    (scale, codes)
}

/// Scale and codes (level + 4) of levels from −4 to 3: one level after the other moves while that helps.
#[inline(always)]
pub(super) fn by_moves<const N: usize, const L: usize>(x: &Runs<N, L>) -> ([f32; L], Runs<N, L>) {
    const HALF: i32 = 4;
    let (most, extreme) = extremes(x);
    let inverse = extreme.map(|extreme| -HALF as f32 / extreme);
    let (mut products, mut squares, mut levels) = ([0.0; L], [0.0; L], [[0.0; L]; N]);
    for (x, levels) in x.iter().zip(&mut levels) {
        for l in 0..L {
            let level = level(inverse[l] * x[l], HALF);
            let weight = x[l] * x[l];
            levels[l] = level;
            products[l] += weight * x[l] * level;
            squares[l] += weight * level * level;
        }
    }
    let mut live = [true; L];
    for _ in 0..5 {
        let mut moved = [false; L];
        for (x, levels) in x.iter().zip(&mut levels) {
            for l in 0..L {
                let (weight, old) = (x[l] * x[l], levels[l]);
                let product = products[l] - weight * x[l] * old;
                let square = squares[l] - weight * old * old;
                let level = level(x[l] * square / product, HALF);
                let (with, squared) = (product + weight * x[l] * level, square + weight * level * level);
                let better = live[l]
                    & (product > 0.0)
                    & (level != old)
                    & (squared > 0.0)
                    & (with * with * squares[l] > products[l] * products[l] * squared);
                levels[l] = if better { level } else { old };
                products[l] = if better { with } else { products[l] };
                squares[l] = if better { squared } else { squares[l] };
                moved[l] |= better;
            }
        }
        live = std::array::from_fn(|l| live[l] & moved[l]);
        if live.iter().all(|live| !live) {
            break;
        }
    }
    let mut scale = [0.0; L];
    for l in 0..L {
        let zero = most[l] < TINY;
        scale[l] = if zero || squares[l] <= 0.0 || squares[l].is_nan() { 0.0 } else { products[l] / squares[l] };
        for levels in &mut levels {
            levels[l] = if zero { 0.0 } else { levels[l] + HALF as f32 };
        }
    }
    (scale, levels)
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

/// Scale, minimum (as it is subtracted) and codes from 0 up. The minimum is not above 0.
#[inline(always)]
pub(super) fn affine<const N: usize, const L: usize>(
    x: &Runs<N, L>,
    weights: &Runs<N, L>,
    search: Search,
) -> ([f32; L], [f32; L], Runs<N, L>) {
    let Search { top, first, step, steps, absolute } = search;
    let (mut low, mut high) = (x[0], x[0]);
    let (mut total, mut total_x) = ([0.0; L], [0.0; L]);
    for l in 0..L {
        (total[l], total_x[l]) = (weights[0][l], weights[0][l] * x[0][l]);
    }
    for (x, w) in x.iter().zip(weights).skip(1) {
        for l in 0..L {
            low[l] = if x[l] < low[l] { x[l] } else { low[l] };
            high[l] = if x[l] > high[l] { x[l] } else { high[l] };
            total[l] += w[l];
            total_x[l] += w[l] * x[l];
        }
    }
    let low = low.map(|low| if low > 0.0 { 0.0 } else { low });
    let code = |inverse: f32, x: f32, low: f32| nearest(inverse * (x - low)).clamp(0, top) as f32;
    let error = |w: f32, scale: f32, code: f32, low: f32, x: f32| {
        let error = scale * code + low - x;
        w * if absolute { error.abs() } else { error * error }
    };
    let (mut inverse, mut scale, mut minimum, mut best) = ([0.0; L], [0.0; L], low, [0.0; L]);
    // What the codes come of: the minimum of the step before the one that found the last.
    let mut origin = low;
    for l in 0..L {
        inverse[l] = top as f32 / (high[l] - low[l]);
        scale[l] = 1.0 / inverse[l];
    }
    for (x, w) in x.iter().zip(weights) {
        for l in 0..L {
            best[l] += error(w[l], scale[l], code(inverse[l], x[l], low[l]), low[l], x[l]);
        }
    }
    let mut codes = [[0.0; L]; N];
    for number in 0..=steps {
        let mut tried = [0.0; L];
        for l in 0..L {
            tried[l] = (first + step * number as f32 + top as f32) / (high[l] - minimum[l]);
        }
        let (mut sum, mut squares, mut products) = ([0.0; L], [0.0; L], [0.0; L]);
        for ((x, w), codes) in x.iter().zip(weights).zip(&mut codes) {
            for l in 0..L {
                let code = code(tried[l], x[l], minimum[l]);
                codes[l] = code;
                sum[l] += w[l] * code;
                squares[l] += w[l] * code * code;
                products[l] += w[l] * code * x[l];
            }
        }
        let (mut determinant, mut found, mut least) = ([0.0; L], [0.0; L], [0.0; L]);
        for l in 0..L {
            determinant[l] = total[l] * squares[l] - sum[l] * sum[l];
            found[l] = (total[l] * products[l] - total_x[l] * sum[l]) / determinant[l];
            least[l] = (squares[l] * total_x[l] - sum[l] * products[l]) / determinant[l];
            let positive = least[l] > 0.0;
            found[l] = if positive { products[l] / squares[l] } else { found[l] };
            least[l] = if positive { 0.0 } else { least[l] };
        }
        let mut errors = [0.0; L];
        for ((x, w), codes) in x.iter().zip(weights).zip(&codes) {
            for l in 0..L {
                errors[l] += error(w[l], found[l], codes[l], least[l], x[l]);
            }
        }
        for l in 0..L {
            let better = determinant[l] > 0.0 && errors[l] < best[l];
            best[l] = if better { errors[l] } else { best[l] };
            inverse[l] = if better { tried[l] } else { inverse[l] };
            origin[l] = if better { minimum[l] } else { origin[l] };
            scale[l] = if better { found[l] } else { scale[l] };
            minimum[l] = if better { least[l] } else { minimum[l] };
        }
    }
    for (x, codes) in x.iter().zip(&mut codes) {
        for l in 0..L {
            codes[l] = if high[l] <= low[l] { 0.0 } else { code(inverse[l], x[l], origin[l]) };
        }
    }
    for l in 0..L {
        let flat = high[l] <= low[l];
        scale[l] = if flat { 0.0 } else { scale[l] };
        minimum[l] = if flat { -low[l] } else { -minimum[l] };
    }
    (scale, minimum, codes)
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
