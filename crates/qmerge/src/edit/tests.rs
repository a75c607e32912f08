use super::*;
use crate::dtype::Dtype;
use crate::linalg::Factors;

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 101) as f32 / 64.0 - 0.75).collect()
}

fn product(outputs: usize, inputs: usize, rank: usize, scale: f32, round: Option<Dtype>) -> Product {
    let right = values(outputs * rank + rank * inputs).split_off(outputs * rank);
    Product::new(rank, values(outputs * rank), right, scale, round)
}

/// Every kind of place for matrices of (outputs, inputs), each with the rows and columns of the stored weight.
fn places(outputs: usize, inputs: usize) -> Vec<(Place, usize, usize)> {
    let all = Stride::first(outputs);
    let mut found = vec![
        (Place::of_matrix(outputs, inputs, false), outputs, inputs),
        (Place::of_matrix(outputs, inputs, true), inputs, outputs),
    ];
    for transposed in [false, true] {
        let (rows, cols) = if transposed { (inputs, outputs) } else { (outputs, inputs) };
        let spot = |e: usize| Spot { rows: e * rows..(e + 1) * rows, transposed, width: outputs, take: all, put: all };
        found.push((Place { spots: (0..3).map(spot).collect() }, 3 * rows, cols));
        // The second half of a fused matrix, one after the other or alternating; the second of two such in a stack.
        for put in [Stride { start: outputs, step: 1, len: outputs }, Stride { start: 1, step: 2, len: outputs }] {
            let (rows, cols) = if transposed { (inputs, 2 * outputs) } else { (2 * outputs, inputs) };
            let spot = Spot { rows: rows..2 * rows, transposed, width: 2 * outputs, take: all, put };
            found.push((Place { spots: vec![spot] }, 2 * rows, cols));
        }
        // A part of the outputs as a weight.
        for take in [Stride { start: 2, step: 1, len: 4 }, Stride { start: 1, step: 2, len: 3 }] {
            let (rows, cols) = if transposed { (inputs, take.len) } else { (take.len, inputs) };
            let spot = Spot { rows: 0..rows, transposed, width: take.len, take, put: Stride::first(take.len) };
            found.push((Place { spots: vec![spot] }, rows, cols));
        }
    }
    found
}

/// Index in the stored weight of an output taken and an input.
fn stored(spot: &Spot, cols: usize, number: usize, input: usize) -> usize {
    let output = spot.put.at(number);
    if spot.transposed { (spot.rows.start + input) * cols + output } else { (spot.rows.start + output) * cols + input }
}

/// Applies edits to all rows, in one chunk and in every cut that they allow; all must agree.
fn applied(edits: &[Edit], rows: usize, cols: usize, base: &[f32]) -> Vec<f32> {
    let mut whole = vec![0.0; base.len()];
    apply(edits, &(0..rows), cols, base, &mut whole);
    let together = edits.iter().fold(1, |step, edit| common_step(step, edit.row_step())).min(rows);
    for step in (together..=rows).step_by(together) {
        let mut cut = vec![0.0; base.len()];
        for start in (0..rows).step_by(step) {
            let run = start..(start + step).min(rows);
            let at = run.start * cols..run.end * cols;
            apply(edits, &run, cols, &base[at.clone()], &mut cut[at]);
        }
        assert_eq!(cut, whole, "cut by {step}");
    }
    whole
}

/// D[o, i] = o − i/8, which is no product of one factor each.
#[derive(Debug)]
struct Slope;

impl Slope {
    fn at(output: usize, input: usize) -> f32 {
        output as f32 - input as f32 / 8.0
    }
}

impl Delta for Slope {
    fn tile(&self, tile: &Tile, out: &mut [f32]) {
        let at = tile.outputs.clone().flat_map(|o| tile.inputs.clone().map(move |i| Self::at(o, i)));
        out.iter_mut().zip(at).for_each(|(out, x)| *out = x);
    }
}

/// W[o, i] · (i + 1), by inputs.
#[derive(Debug)]
struct Scaled;

impl Map for Scaled {
    fn apply(&self, tile: &Tile, base: &[f32], values: &mut [f32]) {
        assert_eq!(base, values);
        for row in values.chunks_exact_mut(tile.inputs.len()) {
            row.iter_mut().zip(tile.inputs.clone()).for_each(|(x, input)| *x *= (input + 1) as f32);
        }
    }
}

const EACH: Reach = Reach::Block { outputs: 1, inputs: 1 };

#[test]
fn a_change_means_the_same_wherever_it_lies() {
    let (outputs, inputs) = (6, 4);
    for (place, rows, cols) in places(outputs, inputs) {
        let count = place.spots.len();
        let base = values(rows * cols);
        let deltas = Change::Add((0..count).map(|_| Box::new(Slope) as Box<dyn Delta>).collect());
        let maps = Change::Map((0..count).map(|_| Box::new(Scaled) as Box<dyn Map>).collect());
        let products = Change::Product((0..count).map(|_| product(outputs, inputs, 2, 0.5, None)).collect());
        let added = applied(&[Edit::new(deltas, &place, Reach::Added)], rows, cols, &base);
        let mapped = applied(&[Edit::new(maps, &place, EACH)], rows, cols, &base);
        let multiplied = applied(&[Edit::new(products, &place, Reach::Added)], rows, cols, &base);
        let one = product(outputs, inputs, 2, 0.5, None);
        let (mut want_added, mut want_mapped, mut want_multiplied) = (base.clone(), base.clone(), base.clone());
        for spot in &place.spots {
            for (number, output) in spot.take.iter().enumerate() {
                for input in 0..inputs {
                    let at = stored(spot, cols, number, input);
                    want_added[at] += Slope::at(output, input);
                    want_mapped[at] *= (input + 1) as f32;
                    let inner = |k: usize| one.left[output * 2 + k] * one.right[k * inputs + input];
                    want_multiplied[at] += 0.5 * inner(1).mul_add(1.0, inner(0));
                }
            }
        }
        assert_eq!(added, want_added, "{place:?}");
        assert_eq!(mapped, want_mapped, "{place:?}");
        assert!(multiplied.iter().zip(want_multiplied).all(|(x, want)| (x - want).abs() < 1e-5), "{place:?}");
    }
}

/// Every value becomes the sum over its block.
#[derive(Debug)]
struct Blocks(usize, usize);

impl Map for Blocks {
    fn apply(&self, tile: &Tile, base: &[f32], values: &mut [f32]) {
        let (outputs, inputs) = (self.0.min(tile.outputs.len()), self.1.min(tile.inputs.len()));
        assert!(tile.outputs.start.is_multiple_of(outputs) && tile.inputs.start.is_multiple_of(inputs), "{tile:?}");
        let width = tile.inputs.len();
        for (at, value) in values.iter_mut().enumerate() {
            let (o, i) = (at / width / outputs * outputs, at % width / inputs * inputs);
            *value = (o..o + outputs).map(|o| base[o * width + i..o * width + i + inputs].iter().sum::<f32>()).sum();
        }
    }
}

#[test]
fn what_goes_together_comes_together() {
    let (outputs, inputs) = (6, 4);
    for (blocks, reach) in [
        ((2, 1), Reach::Block { outputs: 2, inputs: 1 }),
        ((3, 2), Reach::Block { outputs: 3, inputs: 2 }),
        ((1, 4), Reach::Block { outputs: 1, inputs: ALL }),
        ((6, 1), Reach::Block { outputs: ALL, inputs: 1 }),
    ] {
        for (place, rows, cols) in
            places(outputs, inputs).into_iter().filter(|(place, ..)| !place.parts(reach, outputs))
        {
            if place.spots.iter().any(|spot| spot.take != Stride::first(outputs)) {
                continue;
            }
            let base = values(rows * cols);
            let maps = place.spots.iter().map(|_| Box::new(Blocks(blocks.0, blocks.1)) as Box<dyn Map>).collect();
            let got = applied(&[Edit::new(Change::Map(maps), &place, reach)], rows, cols, &base);
            let mut want = base.clone();
            for spot in &place.spots {
                for output in 0..outputs {
                    for input in 0..inputs {
                        let (o, i) = (output / blocks.0 * blocks.0, input / blocks.1 * blocks.1);
                        let block = (o..o + blocks.0).flat_map(|o| (i..i + blocks.1).map(move |i| (o, i)));
                        want[stored(spot, cols, output, input)] =
                            block.map(|(o, i)| base[stored(spot, cols, o, i)]).sum();
                    }
                }
            }
            assert!(got.iter().zip(&want).all(|(x, want)| (x - want).abs() < 1e-5), "{reach:?} {place:?}");
        }
    }
}

#[test]
fn several_edits_follow_each_other() {
    let (rows, cols) = (10, 7);
    let place = Place::of_matrix(rows, cols, false);
    let part = Place {
        spots: [1..4, 6..10]
            .map(|rows| Spot {
                width: rows.len(),
                take: Stride::first(rows.len()),
                put: Stride::first(rows.len()),
                rows,
                transposed: false,
            })
            .to_vec(),
    };
    let products = vec![product(3, cols, 2, 0.7, None), product(4, cols, 2, 0.7, None)];
    let tokens = ReplaceRows { indices: vec![8, 2], values: vec![9.0; 2 * cols] };
    let edits = [
        Edit::new(Change::Product(products), &part, Reach::Added),
        Edit::new(Change::Product(vec![product(rows, cols, 2, -0.3, Some(Dtype::BF16))]), &place, Reach::Added),
        Edit::new(Change::map(tokens), &place, EACH),
        Edit::new(Change::add(Slope), &place, Reach::Added),
    ];
    let whole = applied(&edits, rows, cols, &values(rows * cols));
    assert_eq!(whole[8 * cols], 9.0 + Slope::at(8, 0));
}

#[test]
fn tiles_of_a_product_have_the_bits_of_the_whole() {
    for rank in [1, 3, 200] {
        let (outputs, inputs) = (9, 70);
        let one = product(outputs, inputs, rank, 0.3, None);
        let mut whole = vec![0.0; outputs * inputs];
        one.tile(&Tile { outputs: 0..outputs, inputs: 0..inputs }, &mut whole);
        for (o, i) in [(0..outputs, 3..41), (2..5, 0..inputs), (4..9, 66..70)] {
            let tile = Tile { outputs: o.clone(), inputs: i.clone() };
            let mut own = vec![0.0; tile.len()];
            one.tile(&tile, &mut own);
            let want: Vec<f32> = o.flat_map(|o| whole[o * inputs + i.start..o * inputs + i.end].to_vec()).collect();
            assert_eq!(own, want, "{rank} {tile:?}");
        }
    }
}

#[test]
fn factors_give_back_the_delta_of_all_edits() {
    let (outputs, inputs) = (6, 4);
    for (place, rows, cols) in places(outputs, inputs) {
        let count = place.spots.len();
        let several =
            |rank, scale| Change::Product((0..count).map(|_| product(outputs, inputs, rank, scale, None)).collect());
        let edits =
            [Edit::new(several(2, 0.5), &place, Reach::Added), Edit::new(several(70, -0.01), &place, Reach::Added)];
        let base = vec![0.0; rows * cols];
        let dense = applied(&edits, rows, cols, &base);
        for part in [0..rows, 0..1, rows / 2..rows] {
            let Factors { rank, left, right } = factors(&edits, &part, cols).unwrap();
            assert_eq!((left.len(), right.len()), (part.len() * rank, rank * cols));
            for (at, row) in part.clone().enumerate() {
                for c in 0..cols {
                    let sum: f32 = (0..rank).map(|k| left[at * rank + k] * right[k * cols + c]).sum();
                    assert!((sum - dense[row * cols + c]).abs() < 1e-4, "{place:?} {part:?}");
                }
            }
        }
        // The rows of one matrix of a stack have no more than its own rank.
        let first = place.spots[0].rows.clone();
        assert_eq!(factors(&edits, &first, cols).unwrap().rank, 72);
        assert!(
            factors(
                &[Edit::new(Change::add(Slope), &Place::of_matrix(rows, cols, false), Reach::Added)],
                &(0..rows),
                cols
            )
            .is_none()
        );
    }
    assert_eq!(factors(&[], &(0..3), 4).unwrap().rank, 0);
}
