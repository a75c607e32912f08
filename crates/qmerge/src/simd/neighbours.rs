//! The grid values next to those that a row has.

use super::versions;

versions! {
    /// The largest of `stored` below and the smallest above each value, −∞ and +∞ where there is none. NaN counts as absent.
    pub(crate) fn table_neighbours(stored: &[f32; 16], values: &[f32], below: &mut [f32], above: &mut [f32]) = table_body;
}

#[inline(always)]
fn table_body(stored: &[f32; 16], values: &[f32], below: &mut [f32], above: &mut [f32]) {
    for ((&x, below), above) in values.iter().zip(below).zip(above) {
        let (mut low, mut high) = (f32::NEG_INFINITY, f32::INFINITY);
        for &value in stored {
            low = if value < x && value > low { value } else { low };
            high = if value > x && value < high { value } else { high };
        }
        (*below, *above) = (low, high);
    }
}

versions! {
    /// The same on the levels `scale · k + offset`, k from low to high.
    pub(crate) fn uniform_neighbours(
        scale: f32, offset: f32, low: f32, high: f32, values: &[f32], below: &mut [f32], above: &mut [f32],
    ) = uniform_body;
}

#[inline(always)]
fn uniform_body(scale: f32, offset: f32, low: f32, high: f32, values: &[f32], below: &mut [f32], above: &mut [f32]) {
    let inverse = 1.0 / scale;
    for ((&x, below), above) in values.iter().zip(below).zip(above) {
        let level = ((x - offset) * inverse).round_ties_even();
        // Where the scale is 0 or not finite every comparison fails: no neighbours.
        *below = if level > low { (level - 1.0) * scale + offset } else { f32::NEG_INFINITY };
        *above = if level < high { (level + 1.0) * scale + offset } else { f32::INFINITY };
    }
}

versions! {
    /// Replaces values that are in `old` by those in the same place of `new`; others become 0.
    pub(crate) fn table_moved(old: &[f32; 16], new: &[f32; 16], values: &[f32], out: &mut [f32]) = moved_body;
}

#[inline(always)]
fn moved_body(old: &[f32; 16], new: &[f32; 16], values: &[f32], out: &mut [f32]) {
    for (&x, out) in values.iter().zip(out) {
        let mut moved = 0.0;
        for l in 0..16 {
            moved = if x == old[l] { new[l] } else { moved };
        }
        *out = moved;
    }
}
