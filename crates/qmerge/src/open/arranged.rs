//! Tensors that are wanted with their elements in another order than the file has them.
//!
//! Another program may store a matrix turned, or a stack with its axes exchanged. The entry then has the shape that is wanted, and reading puts the elements into
//! order; the file's bytes stay where they are.

use super::{Checkpoint, Entry};
use crate::error::{Kind, Result, unsupported};

/// Where the elements of a tensor come from: how far one step along each of its axes is in the file, in elements.
#[derive(Clone, Debug)]
pub(super) struct Order {
    axes: Vec<(usize, usize)>,
    /// Bytes of an element.
    size: usize,
    /// Bytes of the tensor in the file.
    stored: u64,
}

/// How a tensor of a file is to be seen: its elements as an array of the dimensions `split`, the axes of that put into the order of `axes`, and all taken as an
/// array of the dimensions `shape`. Where there are to be `copies`, the first axis of the file, of length 1, counts so often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrangement {
    pub(crate) copies: usize,
    pub(crate) split: Vec<usize>,
    pub(crate) axes: Vec<usize>,
    pub(crate) shape: Vec<usize>,
}

impl Arrangement {
    /// A matrix (rows, cols) as (cols, rows).
    pub(crate) fn turned(rows: usize, cols: usize) -> Self {
        Self { split: vec![rows, cols], axes: vec![1, 0], shape: vec![cols, rows], ..Self::default() }
    }

    /// The same elements in the same order, under other dimensions.
    pub(crate) fn reshaped(shape: &[usize]) -> Self {
        Self { split: shape.to_vec(), axes: (0..shape.len()).collect(), shape: shape.to_vec(), ..Self::default() }
    }
}

/// More experts than these no model has.
const MOST_COPIES: usize = 4096;

impl Checkpoint {
    /// Sees a tensor otherwise from now on. Errors if its elements are no whole bytes, or not so many.
    pub(crate) fn arrange(&mut self, name: &str, arrangement: Arrangement) -> Result<()> {
        let Some(&at) = self.by_name.get(name) else { return Ok(()) };
        let Some(entry) = self.entries.get_mut(at) else { return Ok(()) };
        let Arrangement { copies, split, axes, shape } = arrangement;
        let copies = copies.max(1);
        let (block, size) = entry.dtype.block();
        let elements = |dims: &[usize]| dims.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim as u64));
        let mut sorted = axes.clone();
        sorted.sort_unstable();
        let sound = elements(&split) == Some(entry.elements())
            && elements(&shape) == entry.elements().checked_mul(copies as u64)
            && (copies == 1 || split.first() == Some(&1) && copies <= MOST_COPIES)
            && sorted.iter().copied().eq(0..split.len());
        if block != 1 || !sound {
            let (dtype, have) = (entry.dtype, entry.shape.clone());
            return Err(unsupported(format!(
                "stored as {dtype} of shape {have:?}, which cannot be put into another order"
            ))
            .in_file(self.file_of_number(at))
            .in_tensor(name));
        }
        let stored = entry.bytes;
        entry.bytes = stored.saturating_mul(copies as u64);
        entry.shape = shape;
        if sorted == axes && copies == 1 {
            self.orders.remove(name);
            return Ok(());
        }
        let mut steps = vec![1_usize; split.len()];
        for at in (0..split.len().saturating_sub(1)).rev() {
            let (step, len) = (steps.get(at.saturating_add(1)), split.get(at.saturating_add(1)));
            let product = step.zip(len).map_or(1, |(step, len)| step.saturating_mul(*len));
            if let Some(step) = steps.get_mut(at) {
                *step = product;
            }
        }
        let axis = |axis: &usize| match *axis {
            0 if copies > 1 => Some((copies, 0)),
            at => Some((*split.get(at)?, *steps.get(at)?)),
        };
        let order = Order { axes: axes.iter().filter_map(axis).collect(), size: size as usize, stored };
        self.orders.insert(name.to_owned(), order);
        Ok(())
    }

    fn file_of_number(&self, at: usize) -> &std::path::Path {
        self.entries.get(at).map_or(self.path.as_path(), |entry| self.file_of(entry))
    }

    /// Reads bytes of a tensor that is seen in another order than the file's: all of it is read for that.
    pub(super) fn read_ordered(&self, entry: &Entry, order: &Order, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut stored = vec![0; order.stored as usize];
        let outside = || self.error(entry, Kind::Bug, "elements that lie outside of it");
        let file = self.files.get(entry.file).ok_or_else(outside)?;
        file.read_at(entry.start, &mut stored).map_err(|error| error.in_tensor(&entry.name))?;
        // Whole elements are what is asked for, but the bytes of any can be given.
        let size = order.size.max(1);
        let (within, whole) = ((offset as usize).checked_rem(size), (offset as usize).checked_div(size));
        let (mut element, mut skip) = (whole.unwrap_or(0), within.unwrap_or(0));
        let mut rest = buffer;
        while !rest.is_empty() {
            let from = order.place(element).checked_mul(size);
            let bytes = from.and_then(|from| stored.get(from..from.checked_add(size)?)).ok_or_else(outside)?;
            let bytes = bytes.get(skip..).unwrap_or_default();
            let n = bytes.len().min(rest.len());
            let (to, behind) = rest.split_at_mut(n);
            to.copy_from_slice(bytes.get(..n).unwrap_or_default());
            rest = behind;
            (element, skip) = (element.saturating_add(1), 0);
        }
        Ok(())
    }
}

impl Order {
    /// Where in the file an element lies, in elements from the tensor's start.
    fn place(&self, element: usize) -> usize {
        let mut rest = element;
        let mut place = 0_usize;
        for (len, step) in self.axes.iter().rev() {
            // No axis of a tensor that has elements is of none.
            place = place.saturating_add(rest.checked_rem(*len).unwrap_or(0).saturating_mul(*step));
            rest = rest.checked_div(*len).unwrap_or(0);
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(name: &str, shape: &[usize]) -> (std::path::PathBuf, Checkpoint) {
        let path = std::env::temp_dir().join(format!("qmerge-arranged-{}-{name}.safetensors", std::process::id()));
        let bytes: Vec<u8> = (0..shape.iter().product::<usize>()).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &bytes).unwrap();
        safetensors::serialize_to_file([("x", view)], None, &path).unwrap();
        let checkpoint = Checkpoint::open_weights(&path).unwrap();
        (path, checkpoint)
    }

    fn values(checkpoint: &Checkpoint) -> Vec<f32> {
        let entry = checkpoint.get("x").unwrap();
        let bytes = checkpoint.read_small(entry, 1 << 20).unwrap();
        // The same from any byte on.
        for (from, to) in [(0, 4), (5, 7), (4, bytes.len())] {
            let mut part = vec![0; to - from];
            checkpoint.read_at(entry, from as u64, &mut part).unwrap();
            assert_eq!(part, bytes[from..to]);
        }
        assert_eq!(checkpoint.read_starts(&[entry], 8).unwrap(), [bytes[..8].to_vec()]);
        bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect()
    }

    /// Expected values are those of numpy's reshape and transpose.
    #[test]
    fn axes_are_put_into_order() {
        let (path, mut checkpoint) = checkpoint("axes", &[2, 6]);
        checkpoint.arrange("x", Arrangement::turned(2, 6)).unwrap();
        assert_eq!(checkpoint.get("x").unwrap().shape, [6, 2]);
        assert_eq!(values(&checkpoint), [0., 6., 1., 7., 2., 8., 3., 9., 4., 10., 5., 11.]);
        let stack =
            Arrangement { split: vec![2, 3, 2], axes: vec![1, 2, 0], shape: vec![3, 4], ..Arrangement::default() };
        checkpoint.arrange("x", stack).unwrap();
        assert_eq!(values(&checkpoint), [0., 6., 1., 7., 2., 8., 3., 9., 4., 10., 5., 11.]);
        let pairs =
            Arrangement { split: vec![2, 3, 2], axes: vec![0, 2, 1], shape: vec![12, 1], ..Arrangement::default() };
        checkpoint.arrange("x", pairs).unwrap();
        assert_eq!(values(&checkpoint), [0., 2., 4., 1., 3., 5., 6., 8., 10., 7., 9., 11.]);
        checkpoint.arrange("x", Arrangement::reshaped(&[4, 3])).unwrap();
        assert_eq!(checkpoint.get("x").unwrap().shape, [4, 3]);
        assert_eq!(values(&checkpoint), (0..12).map(|i| i as f32).collect::<Vec<_>>());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn one_matrix_counts_for_many() {
        let (path, mut checkpoint) = checkpoint("copies", &[1, 2, 3]);
        let slowest = Arrangement { copies: 2, split: vec![1, 2, 3], axes: vec![0, 1, 2], shape: vec![4, 3] };
        checkpoint.arrange("x", slowest).unwrap();
        assert_eq!(values(&checkpoint), [0., 1., 2., 3., 4., 5., 0., 1., 2., 3., 4., 5.]);
        std::fs::remove_file(path).unwrap();
        let (path, mut checkpoint) = self::checkpoint("fastest", &[1, 3, 1]);
        let fastest = Arrangement { copies: 2, split: vec![1, 3, 1], axes: vec![1, 2, 0], shape: vec![3, 2] };
        checkpoint.arrange("x", fastest).unwrap();
        assert_eq!(values(&checkpoint), [0., 0., 1., 1., 2., 2.]);
        let many = Arrangement { copies: 1 << 40, split: vec![1, 3, 1], axes: vec![0, 1, 2], shape: vec![3 << 40, 1] };
        assert!(checkpoint.arrange("x", many).is_err());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_has_not_so_many_elements_is_refused() {
        let (path, mut checkpoint) = checkpoint("few", &[2, 6]);
        for (split, axes, shape) in [
            (vec![2, 5], vec![1, 0], vec![5, 2]),
            (vec![2, 6], vec![1, 1], vec![6, 2]),
            (vec![2, 6], vec![1, 0], vec![6, 3]),
            (vec![usize::MAX, 6], vec![1, 0], vec![6, 2]),
        ] {
            assert!(checkpoint.arrange("x", Arrangement { split, axes, shape, ..Arrangement::default() }).is_err());
        }
        std::fs::remove_file(path).unwrap();
    }
}
