//! Blocks of values turned over, so that rows lie side by side in a register. A compiler makes gathers of it, which take three times as long.

/// Values on a side.
pub(crate) const SIDE: usize = 8;

/// The columns of eight rows.
#[inline(always)]
pub(crate) fn turned<'r>(row: impl Fn(usize) -> &'r [f32; SIDE]) -> [[f32; SIDE]; SIDE] {
    let rows: [&[f32; SIDE]; SIDE] = std::array::from_fn(row);
    #[cfg(target_arch = "x86_64")]
    if super::level() >= super::Level::Avx2 {
        // SAFETY: `level()` returns a level only after the processor was found to have its features.
        return unsafe { avx2(rows) };
    }
    std::array::from_fn(|column| std::array::from_fn(|row| rows[row][column]))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(rows: [&[f32; SIDE]; SIDE]) -> [[f32; SIDE]; SIDE] {
    use std::arch::x86_64::*;
    // Not by `map`, whose closure is compiled without AVX and called.
    let mut r = [_mm256_setzero_ps(); SIDE];
    for (register, row) in r.iter_mut().zip(rows) {
        // SAFETY: eight floats are read from an array of eight.
        *register = unsafe { _mm256_loadu_ps(row.as_ptr()) };
    }
    // Pairs, then fours, then eights.
    let pairs = |a: usize| (_mm256_unpacklo_ps(r[a], r[a + 1]), _mm256_unpackhi_ps(r[a], r[a + 1]));
    let ((a, b), (c, d), (e, f), (g, h)) = (pairs(0), pairs(2), pairs(4), pairs(6));
    let low = |a, b| _mm256_shuffle_ps::<0b01_00_01_00>(a, b);
    let high = |a, b| _mm256_shuffle_ps::<0b11_10_11_10>(a, b);
    let first = [low(a, c), high(a, c), low(b, d), high(b, d)];
    let last = [low(e, g), high(e, g), low(f, h), high(f, h)];
    let mut out = [[0.0; SIDE]; SIDE];
    for k in 0..4 {
        // SAFETY: eight floats are written to arrays of eight.
        unsafe {
            _mm256_storeu_ps(out[k].as_mut_ptr(), _mm256_permute2f128_ps::<0x20>(first[k], last[k]));
            _mm256_storeu_ps(out[k + 4].as_mut_ptr(), _mm256_permute2f128_ps::<0x31>(first[k], last[k]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced::at_every_level;

    #[test]
    fn rows_become_columns() {
        let rows: Vec<[f32; SIDE]> = (0..SIDE).map(|r| std::array::from_fn(|c| (10 * r + c) as f32)).collect();
        for (level, columns) in at_every_level(|| turned(|r| &rows[r])) {
            for (c, column) in columns.iter().enumerate() {
                for (r, value) in column.iter().enumerate() {
                    assert_eq!(*value, (10 * r + c) as f32, "{level:?}");
                }
            }
        }
    }
}
