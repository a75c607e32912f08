//! Values of a checkpoint's tensors, decoded.

use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PySlice};
use qmerge::error::{Error, Kind, Result};
use qmerge::formats::{Claim, Inventory, Reader, inventory};
use qmerge::inspect::Inspection;
use qmerge::open::{Checkpoint, resolve};

use crate::errors::raised;

/// Elements that are decoded at a time.
const CHUNK: usize = 1 << 18;

/// Name, format and shape of every tensor that has values, in the order of the files.
#[pyfunction]
pub(crate) fn tensors(py: Python<'_>, path: PathBuf) -> PyResult<Vec<(String, String, Vec<usize>)>> {
    let (_, inventory) = py.detach(|| open(&path)).map_err(|error| raised(py, &error))?;
    let describe = |claim: &Claim| {
        let weight = &claim.weight;
        (weight.name().to_owned(), weight.format().to_owned(), weight.shape().to_vec())
    };
    Ok(inventory.weights.iter().map(describe).collect())
}

/// Values of a tensor as little-endian float32, and their shape. `rows` cuts the first dimension, with a step of 1.
#[pyfunction]
#[pyo3(signature = (path, name, rows=None))]
pub(crate) fn read<'py>(
    py: Python<'py>,
    path: PathBuf,
    name: &str,
    rows: Option<Bound<'py, PySlice>>,
) -> PyResult<(Bound<'py, PyByteArray>, Vec<usize>)> {
    let failed = |error: Error| raised(py, &error);
    let (checkpoint, inventory) = py.detach(|| open(&path)).map_err(failed)?;
    let claim = find(&checkpoint, &inventory, name).map_err(failed)?;
    let reader = py.detach(|| Reader::new(&checkpoint, claim)).map_err(failed)?;
    let mut shape = claim.weight.shape().to_vec();
    let mut elements = 0..shape.iter().product();
    if let Some(rows) = rows {
        let Some(first) = shape.first_mut() else {
            return Err(failed(Error::new(Kind::Usage, "a single number has no rows").in_tensor(name)));
        };
        let cut = rows.indices(*first as isize)?;
        if cut.step != 1 {
            return Err(failed(Error::new(Kind::Usage, "rows are read with a step of 1").in_tensor(name)));
        }
        let per_row = elements.end / (*first).max(1);
        *first = cut.slicelength;
        elements = cut.start as usize * per_row..(cut.start as usize + *first) * per_row;
    }
    let bytes = PyByteArray::new_with(py, elements.len() * 4, |bytes| {
        py.detach(|| decode(&reader, elements, bytes)).map_err(failed)
    })?;
    Ok((bytes, shape))
}

/// A model or an adapter, and its weights.
fn open(location: &Path) -> Result<(Checkpoint, Inventory)> {
    let is_address = qmerge_store::is_address(location);
    let path = if is_address { location.to_path_buf() } else { resolve(location)? };
    let is_adapter = match is_address {
        true => matches!(qmerge_store::inspect(location)?, Inspection::Adapter(_)),
        false => path.join("adapter_config.json").is_file(),
    };
    let checkpoint =
        if is_adapter { qmerge_store::adapter(&path, 1.0)?.tensors } else { qmerge_store::checkpoint(&path)? };
    let inventory = inventory(&checkpoint)?;
    Ok((checkpoint, inventory))
}

fn find<'i>(checkpoint: &Checkpoint, inventory: &'i Inventory, name: &str) -> Result<&'i Claim> {
    inventory.weights.iter().find(|claim| claim.weight.name() == name).ok_or_else(|| {
        let problem = match checkpoint.get(name) {
            Some(entry) => format!("{:?} values belong to no weight by themselves", entry.dtype),
            None => "there is no tensor of that name".to_owned(),
        };
        Error::new(Kind::Mismatch, problem)
            .in_file(&checkpoint.path)
            .in_tensor(name)
            .with_hint("qmerge.tensors() lists the names")
    })
}

/// Decodes a range of elements, counted in the order of the shape, whatever rows the format is cut into.
fn decode(reader: &Reader<'_>, elements: std::ops::Range<usize>, out: &mut [u8]) -> Result<()> {
    let cols = reader.claim().weight.geometry().cols.max(1);
    let (mut values, mut written) = (Vec::new(), 0);
    for chunk in reader.chunks(CHUNK) {
        let from = elements.start.max(chunk.start * cols);
        let to = elements.end.min(chunk.end * cols);
        if from >= to {
            continue;
        }
        let rows = from / cols..to.div_ceil(cols);
        reader.rows(&rows, &mut values)?;
        let wanted = &values[from - rows.start * cols..to - rows.start * cols];
        for (value, bytes) in wanted.iter().zip(out[written..].chunks_exact_mut(4)) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        written += wanted.len() * 4;
    }
    Ok(())
}
