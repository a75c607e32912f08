//! Where a value lies among others: between two of them, or on one.

use crate::dtype::Dtype;

/// The largest of some values not above `x` and the smallest not below; where there is none, the other one.
pub(super) fn bracket(values: impl Iterator<Item = f32>, x: f32) -> (f32, f32) {
    let (mut low, mut high) = (f32::NEG_INFINITY, f32::INFINITY);
    for value in values {
        if value <= x && value > low {
            low = value;
        }
        if value >= x && value < high {
            high = value;
        }
    }
    ends(low, high)
}

/// What is not there is the other one.
fn ends(low: f32, high: f32) -> (f32, f32) {
    match (low.is_finite(), high.is_finite()) {
        (true, true) => (low, high),
        (true, false) => (low, low),
        (false, true) => (high, high),
        (false, false) => (0.0, 0.0),
    }
}

/// [`bracket`] without branches, of every fourth value by itself and then of what these have found.
pub(super) fn bracket_few(values: &[f32], x: f32) -> (f32, f32) {
    let (mut lows, mut highs) = ([f32::NEG_INFINITY; 4], [f32::INFINITY; 4]);
    for values in values.chunks(4) {
        for ((low, high), &value) in lows.iter_mut().zip(&mut highs).zip(values) {
            *low = if value <= x && value > *low { value } else { *low };
            *high = if value >= x && value < *high { value } else { *high };
        }
    }
    let low = lows.into_iter().fold(f32::NEG_INFINITY, |least, low| if low > least { low } else { least });
    let high = highs.into_iter().fold(f32::INFINITY, |most, high| if high < most { high } else { most });
    ends(low, high)
}

/// [`bracket`] of many, level by level, so that the inner loop has no branches.
pub(super) fn bracket_all(values: &[f32], x: &[f32], low: &mut [f32], high: &mut [f32]) {
    low.fill(f32::NEG_INFINITY);
    high.fill(f32::INFINITY);
    for &value in values {
        for ((&x, low), high) in x.iter().zip(low.iter_mut()).zip(high.iter_mut()) {
            let below = if value <= x { value } else { f32::NEG_INFINITY };
            *low = if below > *low { below } else { *low };
            let above = if value >= x { value } else { f32::INFINITY };
            *high = if above < *high { above } else { *high };
        }
    }
    low.iter_mut().zip(high).for_each(|(low, high)| (*low, *high) = ends(*low, *high));
}

/// The next value of `dtype` above or below one of its values.
pub(super) fn neighbour(dtype: Dtype, x: f32, up: bool) -> f32 {
    let step = match dtype {
        Dtype::BF16 => 16,
        Dtype::F16 => {
            let h = half::f16::from_f32(x);
            let bits = h.to_bits();
            let away = up != h.is_sign_negative();
            let next = match (bits & 0x7fff, away) {
                (0, _) => {
                    if up {
                        1
                    } else {
                        0x8001
                    }
                }
                (_, true) => bits + 1,
                (_, false) => bits - 1,
            };
            return half::f16::from_bits(next).to_f32();
        }
        _ => 0,
    };
    let bits = x.to_bits();
    if bits << 1 == 0 {
        return f32::from_bits((1 << step) | if up { 0 } else { 1 << 31 });
    }
    let away = up != (x < 0.0);
    f32::from_bits(if away { bits + (1 << step) } else { bits - (1 << step) })
}
