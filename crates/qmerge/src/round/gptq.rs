//! GPTQ (Frantar et al. 2022): columns in the order of falling diagonal of H, the error of each carried to those that follow.
//!
//! In the form of LDLQ (Chee et al. 2023), which is the same: with H = (I + L)ᵀ D (I + L), L strictly lower in the order of work, column k takes the level nearest to
//! w_k + Σ_j (w_j − q_j)·L_kj over the columns j before it.
//!
//! Both halves go by blocks of columns: a block is done column by column, then all that follows takes it as a product of matrices.
//!
//! Where it is but a start, columns can be done in groups that know nothing of each other's errors ([`Feedback`]): work and memory are then those of a group.

use super::matrix::{Delta, Judged, Matrix, judged};
use super::moments::Metric;
use super::{Detail, Preparing, Rounding, Whole};
use crate::parallel::spread;
use crate::simd::matmul::{PANEL, add_panel};
use crate::simd::vectors::{axpy, axpys};

/// Elements of a tile: [`PANEL`] rows and columns.
const TILE: usize = PANEL * PANEL;
/// Rows that go through all columns together.
const ROWS: usize = 3 * PANEL;

/// Nanoseconds of one thread for a cube of a group's columns: a sixth of as many products.
const PREPARED: f64 = 0.01;

pub(super) struct Gptq;

impl Rounding for Gptq {
    fn id(&self) -> &'static str {
        "gptq"
    }

    fn about(&self) -> &'static str {
        "the base's scales stay, each column's error is carried to the next; needs calibration"
    }

    fn whole(&self) -> Option<&dyn Whole> {
        Some(self)
    }
}

impl Whole for Gptq {
    fn nanoseconds(&self, inputs: usize, _: bool, _: Detail) -> f64 {
        // Choosing a level, and its error carried to half of the columns on average.
        25.0 + 0.07 * inputs as f64
    }

    fn round(&self, matrix: &mut Matrix<'_>) -> Judged {
        let start = (!matrix.at_base()).then(|| matrix.values.clone());
        let rows: Vec<usize> = (0..matrix.rows).collect();
        let mut values = std::mem::take(&mut matrix.values);
        let target = |row: usize, part: &mut [f32]| part.copy_from_slice(matrix.target_of(row));
        carry(matrix, usize::MAX, &rows, &target, &mut values);
        matrix.values = values;
        better(matrix, start)
    }

    fn prepare(&self, metric: &mut Metric, _: bool) {
        metric.feedback = Some(Feedback::new(metric, usize::MAX));
    }

    fn preparing(&self, inputs: usize, _: bool, _: Detail) -> Preparing {
        Feedback::preparing(inputs, usize::MAX)
    }
}

/// Rounds `values` of some rows, (rows, cols), that are on the grid, to what `target` says of each row, column by column in the order of feedback: that of so many columns
/// together, where none was prepared.
pub(super) fn carry(
    matrix: &Matrix<'_>,
    together: usize,
    rows: &[usize],
    target: &(impl Fn(usize, &mut [f32]) + Sync),
    values: &mut [f32],
) {
    let own;
    let feedback = match &matrix.metric.feedback {
        Some(feedback) => feedback,
        None => {
            own = Feedback::new(matrix.metric, together);
            &own
        }
    };
    let half_gap = matrix.grid.half_gap();
    let parts = rows.chunks(ROWS).zip(values.chunks_mut((ROWS * matrix.cols).max(1)));
    spread(parts, |(rows, values)| {
        let part = rows.len().div_ceil(PANEL) * TILE;
        let mut aims: Vec<Vec<f32>> =
            feedback.groups.iter().map(|group| vec![0.0; group.order.len().div_ceil(PANEL) * part]).collect();
        let mut own = vec![0.0; matrix.cols];
        for (r, &row) in rows.iter().enumerate() {
            target(row, &mut own);
            for (aims, group) in aims.iter_mut().zip(&feedback.groups) {
                group.order.iter().enumerate().for_each(|(k, &j)| aims[place(part, r, k)] = own[j]);
            }
        }
        for (aims, group) in aims.iter().zip(&feedback.groups) {
            carry_some((matrix, half_gap), rows, aims, values, group);
        }
    });
}

/// Where the k-th column of some rows lies, in parts of a block of columns: one column after the other, each with as many rows as a panel has. A column's value needs the errors of
/// those before it, but not of other rows.
fn place(part: usize, r: usize, k: usize) -> usize {
    k / PANEL * part + r / PANEL * TILE + k % PANEL * PANEL + r % PANEL
}

/// The same of a group's columns in no more than [`ROWS`], whose targets are `aims`.
fn carry_some(
    (matrix, half_gap): (&Matrix<'_>, f32),
    rows: &[usize],
    aims: &[f32],
    values: &mut [f32],
    Tiles { order, data }: &Tiles,
) {
    let n = matrix.cols;
    let tile = |before, after| &data[(triangle(after) + before) * TILE..][..TILE];
    let part = rows.len().div_ceil(PANEL) * TILE;
    let mut held = vec![0.0; aims.len()];
    for (r, values) in values.chunks_exact(n).enumerate() {
        order.iter().enumerate().for_each(|(k, &j)| held[place(part, r, k)] = values[j]);
    }
    // What columns shall become.
    let mut wanted = aims.to_vec();
    let mut errors = vec![0.0; part];
    for (block, order) in order.chunks(PANEL).enumerate() {
        let (own, after) = wanted[block * part..].split_at_mut(part);
        let within = tile(block, block);
        let panels = errors.chunks_exact_mut(TILE).zip(own.chunks_exact_mut(TILE)).zip(rows.chunks(PANEL));
        let given = aims[block * part..].chunks_exact(TILE).zip(held[block * part..].chunks_exact_mut(TILE));
        for (((errors, wanted), rows), (aims, held)) in panels.zip(given) {
            carry_within((matrix, half_gap), (rows, order), within, aims, wanted, held, errors);
        }
        for (number, wanted) in after.chunks_exact_mut(part).enumerate() {
            let tile = tile(block, block + 1 + number);
            let panels = errors.chunks_exact(TILE).zip(wanted.chunks_exact_mut(TILE));
            panels.for_each(|(errors, wanted)| add_panel(tile, errors, wanted));
        }
    }
    for (r, values) in values.chunks_exact_mut(n).enumerate() {
        order.iter().enumerate().for_each(|(k, &j)| values[j] = held[place(part, r, k)]);
    }
}

/// The columns of a block in a panel's rows, one after the other; all but `within` are (columns, rows).
fn carry_within(
    (matrix, half_gap): (&Matrix<'_>, f32),
    (rows, order): (&[usize], &[usize]),
    within: &[f32],
    aims: &[f32],
    wanted: &mut [f32],
    held: &mut [f32],
    errors: &mut [f32],
) {
    for (k, &j) in order.iter().enumerate() {
        let column = k * PANEL..(k + 1) * PANEL;
        let (before, errors) = errors.split_at_mut(column.start);
        let wanted = &mut wanted[column.clone()];
        axpys(&within[column.clone()][..k], before, wanted);
        let values = held[column.clone()].iter_mut().zip(&*wanted).zip(errors.iter_mut().zip(&aims[column]));
        for (((value, &wanted), (error, aim)), row) in values.zip(rows) {
            let run = matrix.grid.run_of(row * matrix.cols + j);
            // A value stays where it would move by less than half a step.
            let bound = half_gap * matrix.grid.scales.get(run).map_or(0.0, |scale| scale.abs());
            let stays = (wanted - *value).abs() < bound;
            if !stays {
                *value = matrix.grid.nearest_in(run, wanted);
            }
            *error = aim - *value;
        }
    }
}

/// What errors are carried by: groups of columns in the order of falling diagonal, in each of which a column's error goes to those after it.
#[derive(Debug)]
pub(super) struct Feedback {
    groups: Vec<Tiles>,
}

/// What the error of a group's column adds to those after it: a matrix of which nothing below the diagonal is read, in tiles, padded with zeros, its columns in the order of work.
#[derive(Debug)]
struct Tiles {
    order: Vec<usize>,
    /// Tiles down to the diagonal, column by column; in each, what a column takes from those before it is a row.
    data: Vec<f32>,
}

/// Tiles of so many columns of them.
fn triangle(columns: usize) -> usize {
    columns * (columns + 1) / 2
}

/// Columns of each group but the last: whole tiles, of no more columns than so many, or than one tile's.
fn group_width(columns: usize, together: usize) -> usize {
    let groups = columns.div_ceil(together.max(PANEL)).max(1);
    columns.div_ceil(groups).next_multiple_of(PANEL).max(PANEL)
}

impl Feedback {
    /// Of groups of at most so many columns, a multiple of [`PANEL`].
    pub(super) fn new(metric: &Metric, together: usize) -> Self {
        let mut order: Vec<usize> = (0..metric.features).collect();
        order.sort_by(|&a, &b| metric.diagonal[b].total_cmp(&metric.diagonal[a]));
        let mut groups: Vec<(&[usize], Option<Tiles>)> =
            order.chunks(group_width(metric.features, together)).map(|order| (order, None)).collect();
        spread(&mut groups, |(order, group)| *group = Some(tiles(metric, order)));
        Self { groups: groups.into_iter().filter_map(|(_, group)| group).collect() }
    }

    /// What that takes.
    pub(super) fn preparing(columns: usize, together: usize) -> Preparing {
        let width = group_width(columns, together);
        let groups = (0..columns).step_by(width).map(|start| (columns - start).min(width));
        groups.fold(Preparing::default(), |sum, columns| Preparing {
            bytes: sum.bytes + 4 * (TILE * triangle(columns.div_ceil(PANEL))) as u64,
            nanoseconds: sum.nanoseconds + PREPARED * (columns * columns) as f64 * columns as f64,
        })
    }
}

/// Row k holds, above the diagonal, what the error of the k-th column adds to those after it.
fn tiles(metric: &Metric, order: &[usize]) -> Tiles {
    let n = order.len();
    let count = n.div_ceil(PANEL);
    // At first the rows of H down to the diagonal. Each row of tiles becomes the column of the same number.
    let mut data = vec![0.0; triangle(count) * TILE];
    for (i, &from) in order.iter().enumerate() {
        let row = &mut data[triangle(i / PANEL) * TILE + i % PANEL * PANEL..];
        for (tile, order) in row.chunks_mut(TILE).zip(order[..=i].chunks(PANEL)) {
            tile.iter_mut().zip(order).for_each(|(moment, &to)| *moment = metric.at(from, to));
        }
    }
    // From the last column to the first: its share of all before it is divided out.
    for block in (0..count).rev() {
        let (mut before, own) = data.split_at_mut(triangle(block) * TILE);
        let own = &mut own[..(block + 1) * TILE];
        let pivots = within(own, PANEL.min(n - block * PANEL));
        // Its rows, from the last to the first.
        let mut right = vec![0.0; block * TILE];
        for (own, right) in own.chunks_exact(TILE).zip(right.chunks_exact_mut(TILE)) {
            for ((own, right), pivot) in own.chunks_exact(PANEL).zip(right.rchunks_exact_mut(PANEL)).zip(&pivots) {
                if pivot.is_some() {
                    right.copy_from_slice(own);
                }
            }
        }
        let rows = own.chunks_exact_mut(TILE).take(block).enumerate();
        let rows = rows.map(|(row, own)| (own, before.split_off_mut(..(row + 1) * TILE).unwrap_or_default()));
        spread(rows.collect::<Vec<_>>(), |(own, tiles)| {
            let mut left = vec![0.0; TILE];
            for (k, pivot) in pivots.iter().enumerate() {
                for i in 0..PANEL {
                    let share = pivot.map_or(0.0, |pivot| own[k * PANEL + i] / pivot);
                    left[i * PANEL + PANEL - 1 - k] = -share;
                }
            }
            for (own, left) in own.chunks_exact_mut(PANEL).zip(left.chunks_exact(PANEL)) {
                own.iter_mut().zip(left.iter().rev()).for_each(|(own, left)| *own = -left);
            }
            for (tile, right) in tiles.chunks_exact_mut(TILE).zip(right.chunks_exact(TILE)) {
                add_panel(&left, right, tile);
            }
        });
    }
    data.chunks_exact_mut(TILE).for_each(turn_over);
    Tiles { order: order.to_vec(), data }
}

/// Makes a tile's rows its columns.
fn turn_over(tile: &mut [f32]) {
    for i in 0..PANEL {
        for k in 0..i {
            tile.swap(i * PANEL + k, k * PANEL + i);
        }
    }
}

/// The same within the rows of a block, of which the last tile is on the diagonal. Returns the pivots that are above zero.
fn within(own: &mut [f32], size: usize) -> Vec<Option<f32>> {
    let last = own.len() - TILE;
    let mut pivots = vec![None; size];
    for k in (0..size).rev() {
        let pivot = own[last + k * PANEL + k];
        // Rounding has eaten what damping left: such a column takes no feedback.
        let positive = pivot > 0.0;
        for i in 0..k {
            let x = own[last + k * PANEL + i];
            if positive {
                for (number, tile) in own.chunks_exact_mut(TILE).enumerate() {
                    let (above, row) = tile.split_at_mut(k * PANEL);
                    let width = if number * TILE == last { i + 1 } else { PANEL };
                    axpy(-x / pivot, &row[..width], &mut above[i * PANEL..][..width]);
                }
            }
            own[last + i * PANEL + k] = if positive { x / pivot } else { 0.0 };
        }
        pivots[k] = positive.then_some(pivot);
    }
    pivots
}

/// What became of the output; the start again, the base's values where there is none, where that is better.
fn better(matrix: &mut Matrix<'_>, start: Option<Vec<f32>>) -> Judged {
    let delta = Delta::new(matrix);
    let found = judged(matrix, &delta);
    let start = start.unwrap_or_else(|| matrix.base.to_vec());
    let values = std::mem::replace(&mut matrix.values, start);
    let before = judged(matrix, &delta);
    if before.kept.noise < found.kept.noise {
        return before;
    }
    matrix.values = values;
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::hash;
    use crate::round::InputMoments;

    /// Moments of inputs that go with each other.
    fn metric(n: usize) -> Metric {
        let number = |i: usize| f64::from((hash(i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0);
        let input = |t: usize, i: usize| number(t * n + i) + number(9_000_000 + t) * number(8_000_000 + i);
        let moment = |at: usize| (0..2 * n).map(|t| input(t, at / n) * input(t, at % n)).sum::<f64>() / n as f64;
        let values = (0..n * n).map(|at| moment(at) as f32).collect();
        Metric::damped(InputMoments { features: n, tokens: 2 * n, values }, 0.03).unwrap()
    }

    /// Eliminated column by column in f64, and padded where a group's last tile is.
    #[test]
    fn feedback_is_that_of_each_group() {
        let n = 200;
        let metric = metric(n);
        for (together, sizes) in [(usize::MAX, vec![200]), (128, vec![128, 72]), (64, vec![64, 64, 64, 8])] {
            let feedback = Feedback::new(&metric, together);
            assert_eq!(feedback.groups.iter().map(|group| group.order.len()).collect::<Vec<_>>(), sizes);
            for Tiles { order, data } in &feedback.groups {
                let mut h: Vec<Vec<f64>> =
                    order.iter().map(|&i| order.iter().map(|&j| f64::from(metric.at(i, j))).collect()).collect();
                for k in (0..order.len()).rev() {
                    let (before, own) = h.split_at_mut(k);
                    for row in before {
                        let share = row[k] / own[0][k];
                        row[..k].iter_mut().zip(&own[0]).for_each(|(x, y)| *x -= share * y);
                        row[k] = share;
                    }
                }
                for (i, row) in h.iter().enumerate() {
                    for (k, want) in row.iter().enumerate().skip(i + 1) {
                        let tile = &data[(triangle(k / PANEL) + i / PANEL) * TILE..][..TILE];
                        let found = f64::from(tile[k % PANEL * PANEL + i % PANEL]);
                        assert!((found - want).abs() < 1e-4, "{together}: {i}, {k}: {found} for {want}");
                    }
                }
            }
            let bytes: usize = feedback.groups.iter().map(|group| 4 * group.data.len()).sum();
            assert_eq!(Feedback::preparing(n, together).bytes, bytes as u64);
        }
        assert_eq!(Feedback::preparing(0, 2048), Preparing::default());
    }
}
