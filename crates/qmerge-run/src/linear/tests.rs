//! Layers with adapters beside them.

use qmerge::edit::{ALL, Change, Delta, Map, Place, Product, Reach, Tile};
use qmerge::formats::{self, Reader};
use qmerge::open::Checkpoint;

use super::*;

/// Every value is the sum of its indices.
#[derive(Debug)]
struct Sum;

impl Delta for Sum {
    fn tile(&self, tile: &Tile, out: &mut [f32]) {
        let at = tile.outputs.clone().flat_map(|o| tile.inputs.clone().map(move |i| (o + i) as f32));
        out.iter_mut().zip(at).for_each(|(out, x)| *out = x);
    }

    fn has_forward(&self) -> bool {
        true
    }

    fn forward(&self, x: &[f32], tokens: usize, y: &mut [f32]) {
        for (o, y) in y.chunks_exact_mut(tokens).enumerate() {
            for (i, x) in x.chunks_exact(tokens).enumerate() {
                y.iter_mut().zip(x).for_each(|(y, x)| *y += (o + i) as f32 * x);
            }
        }
    }
}

/// Inputs or outputs times their numbers from 1.
#[derive(Debug)]
struct Scaled(Side);

impl Map for Scaled {
    fn apply(&self, tile: &Tile, _: &[f32], values: &mut [f32]) {
        for (at, value) in values.iter_mut().enumerate() {
            let (o, i) = (tile.outputs.start + at / tile.inputs.len(), tile.inputs.start + at % tile.inputs.len());
            *value *= if self.0 == Side::Inputs { i + 1 } else { o + 1 } as f32;
        }
    }

    fn side(&self) -> Option<Side> {
        Some(self.0)
    }

    fn forward(&self, activations: &mut [f32], tokens: usize) {
        for (i, row) in activations.chunks_exact_mut(tokens).enumerate() {
            row.iter_mut().for_each(|x| *x *= (i + 1) as f32);
        }
    }
}

/// Inputs in the order from the last to the first.
#[derive(Debug)]
struct Backwards;

impl Map for Backwards {
    fn apply(&self, tile: &Tile, _: &[f32], values: &mut [f32]) {
        values.chunks_exact_mut(tile.inputs.len()).for_each(<[f32]>::reverse);
    }

    fn side(&self) -> Option<Side> {
        Some(Side::Inputs)
    }

    fn forward(&self, activations: &mut [f32], tokens: usize) {
        let turned: Vec<f32> = activations.chunks_exact(tokens).rev().flatten().copied().collect();
        activations.copy_from_slice(&turned);
    }
}

#[test]
fn an_adapter_beside_a_layer_does_what_it_does_to_the_weight() {
    let (outputs, inputs, tokens) = (6, 4, 3);
    let path = std::env::temp_dir().join(format!("qmerge-linear-{}.safetensors", std::process::id()));
    let mut header = format!(r#"{{"w":{{"dtype":"F32","shape":[{outputs},{inputs}],"data_offsets":[0,96]}}}}"#);
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend((0..outputs * inputs).flat_map(|i| ((i * 5 % 7) as f32 - 3.0).to_le_bytes()));
    std::fs::write(&path, file).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let inventory = formats::inventory(&checkpoint).unwrap();
    let place = Place::of_matrix(outputs, inputs, false);
    let block = Reach::Block { outputs: 1, inputs: 1 };
    let product = Product::new(1, vec![0.5; outputs], vec![-2.0; inputs], 1.0, None);
    let edit = |change, reach| Edit::new(change, &place, reach);
    let all = [
        vec![edit(Change::map(Scaled(Side::Inputs)), block)],
        vec![edit(Change::map(Scaled(Side::Outputs)), block)],
        vec![
            edit(Change::map(Scaled(Side::Inputs)), block),
            edit(Change::map(Backwards), Reach::Block { outputs: 1, inputs: ALL }),
            edit(Change::map(Scaled(Side::Outputs)), block),
        ],
        vec![edit(Change::add(Sum), Reach::Added), edit(Change::Product(vec![product]), Reach::Added)],
    ];
    let x: Vec<f32> = (0..inputs * tokens).map(|i| i as f32 - 4.0).collect();
    let at = |strength| Manner { precision: Precision::Full, strength };
    for edits in all {
        let reader = Reader::new(&checkpoint, &inventory.weights[0]).unwrap();
        let weight = Edited::with_edits(reader, edits).unwrap();
        let mut linear = Linear {
            name: "w".into(),
            bytes: 0,
            weight: Arc::new(weight),
            rows: 0..outputs,
            bias: None,
            inputs,
            outputs,
            transposed: false,
            apart: true,
        };
        let input = Input::new(&x, inputs, Precision::Full);
        let beside = linear.forward(&input).unwrap();
        linear.apart = false;
        assert_eq!(beside, linear.forward(&input).unwrap());
        // Maps of inputs and of outputs are strengthened each by itself beside the layer, and together in the weight.
        let both = |side| linear.weight.edits().unwrap().iter().any(|edit| edit.side() == Some(side));
        let is_apart = [true, false].into_iter().filter(|_| !(both(Side::Inputs) && both(Side::Outputs)));
        let without = linear.forward(&Input::new(&x, inputs, at(0.0))).unwrap();
        for apart in is_apart {
            linear.apart = apart;
            let stronger = linear.forward(&Input::new(&x, inputs, at(4.0))).unwrap();
            let expected: Vec<f32> = without.iter().zip(&beside).map(|(base, own)| base + 4.0 * (own - base)).collect();
            assert_eq!(stronger, expected);
            assert_eq!(linear.forward(&Input::new(&x, inputs, at(0.0))).unwrap(), without);
        }
        assert_ne!(without, beside);
    }
    std::fs::remove_file(path).unwrap();
}
