//! The weights of a base in every format: decoded whole and by rows, stored on the grid that they are on, and encoded anew.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use qmerge::error::Result;
use qmerge::formats::{Claim, Reader};
use qmerge::open::Checkpoint;

/// Most values of a weight that is looked at, and most rows.
const MOST: usize = 1 << 20;

/// Most bytes of one of its parts.
const PART: u64 = 1 << 22;

fuzz_target!(|text: &[u8]| -> Corpus {
    let [config, base] = qmerge_fuzz::parts(text);
    let Some(inputs) = qmerge_fuzz::inputs([config, base, b"", b""]) else { return Corpus::Reject };
    match inputs {
        Err(error) => qmerge_fuzz::honest(&error),
        Ok(inputs) => {
            for claim in &inputs.inventory.weights {
                if let Err(error) = read(&inputs.base, claim) {
                    qmerge_fuzz::honest(&error);
                }
            }
        }
    }
    Corpus::Keep
});

fn read(base: &Checkpoint, claim: &Claim) -> Result<()> {
    let (weight, geometry) = (&claim.weight, claim.weight.geometry());
    let (rows, cols) = (geometry.rows, geometry.cols);
    if rows.saturating_mul(cols) > MOST || rows > MOST {
        return Ok(());
    }
    let reader = Reader::new(base, claim)?;
    let mut values = Vec::new();
    for chunk in reader.chunks(1 << 12) {
        reader.rows(&chunk, &mut values)?;
        assert_eq!(values.len(), chunk.len() * cols);
    }
    if rows > 2 {
        reader.rows(&(1..rows - 1), &mut values)?;
    }
    let parts: Vec<Vec<u8>> = claim.entries.iter().map(|entry| base.read_small(entry, PART)).collect::<Result<_>>()?;
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    let Some(on_grid) = weight.on_grid() else { return Ok(()) };
    let mut values = vec![0.0; rows * cols];
    weight.decode(&parts, 0..rows, &mut values);
    if values.iter().any(|value| !value.is_finite()) {
        return Ok(());
    }
    let grid = on_grid.grid(&parts, 0..rows);
    for grid in [None, Some(&grid)] {
        let mut out = vec![Vec::new(); parts.len()];
        on_grid.store(&parts, 0..rows, &values, grid, &mut out);
    }
    let Some(writer) = weight.writer() else { return Ok(()) };
    let mut held = Vec::new();
    if writer.needs_survey() {
        writer.survey(0..rows, &values, &mut held);
    }
    let settled = writer.settle(&held, &vec![None; parts.len()]);
    if let Some(writer) = settled.weight.writer() {
        let mut out = vec![Vec::new(); parts.len()];
        writer.encode(&settled.parts, 0..rows, &values, &mut out);
    }
    Ok(())
}
