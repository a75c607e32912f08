//! Where every byte of the output goes.
//!
//! Files, names and order are the base's. A part whose length depends on the data (the JSON state of a double-quantized weight)
//! goes to the end of its file, and the header gets room for its longest form; so every other offset is known before the first
//! byte is written, and workers write disjoint ranges.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::export::Exported;
use super::{Action, Inputs, Step};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result, mismatch, unsupported};
use crate::open::Checkpoint;
use crate::open::container::{Listed, WriteContainer};
use crate::open::safetensors::Safetensors;

/// A tensor of the output: file and number within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index into [`super::Plan::files`].
    pub file: usize,
    /// Index into [`OutFile::tensors`].
    pub tensor: usize,
}

/// One weight file of the output.
#[derive(Clone, Debug)]
pub struct OutFile {
    /// File name.
    pub name: String,
    /// How it is written.
    pub(crate) container: Arc<dyn WriteContainer>,
    /// `__metadata__`, the base's.
    pub metadata: Vec<(String, String)>,
    /// Tensors in the order of their data.
    pub tensors: Vec<OutTensor>,
    /// Bytes in front of the data: the length field and the padded header.
    pub data_start: u64,
}

/// One tensor of an output file.
#[derive(Clone, Debug)]
pub struct OutTensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions; `None` until the length is known.
    pub shape: Option<Vec<usize>>,
    /// Bytes, or the most it can take.
    pub bytes: u64,
    /// Offset from the start of the data; for a tensor of unknown length the largest it can be.
    pub offset: u64,
}

impl OutFile {
    /// A file of tensors whose offsets are set, with room for its header.
    pub(crate) fn new(
        name: String,
        container: Arc<dyn WriteContainer>,
        metadata: Vec<(String, String)>,
        tensors: Vec<OutTensor>,
    ) -> Self {
        let mut file = Self { name, container, metadata, tensors, data_start: 0 };
        // The longest form has the largest lengths and offsets, hence the most digits.
        let (listed, _) = file.listed(&HashMap::new());
        file.data_start = file.container.header(&file.metadata, &listed, None).len() as u64;
        file
    }

    /// The most bytes the file can take.
    pub fn max_bytes(&self) -> u64 {
        self.padded(self.tensors.last().map_or(0, |last| last.offset + last.bytes))
    }

    /// Bytes of the file whose last tensor ends there, behind the header.
    pub(crate) fn padded(&self, end: u64) -> u64 {
        self.data_start + end.next_multiple_of(self.container.alignment())
    }

    /// The header with the actual lengths of parts that were unknown, of the planned size.
    ///
    /// `lengths` maps the number of such a tensor to its length. Returns the bytes in front of the data, and the offset of each
    /// such tensor.
    pub fn header(&self, lengths: &HashMap<usize, u64>) -> (Vec<u8>, HashMap<usize, u64>) {
        let (listed, offsets) = self.listed(lengths);
        (self.container.header(&self.metadata, &listed, Some(self.data_start)), offsets)
    }

    /// Its tensors with their places, and the offsets of those of unknown length.
    fn listed(&self, lengths: &HashMap<usize, u64>) -> (Vec<Listed<'_>>, HashMap<usize, u64>) {
        let (mut listed, mut offsets) = (Vec::with_capacity(self.tensors.len()), HashMap::new());
        let mut end = 0_u64;
        for (number, tensor) in self.tensors.iter().enumerate() {
            let (start, len, shape) = match &tensor.shape {
                Some(shape) => (tensor.offset, tensor.bytes, shape.clone()),
                None => {
                    let len = lengths.get(&number).copied().unwrap_or(tensor.bytes);
                    let start = end.next_multiple_of(self.container.alignment());
                    offsets.insert(number, start);
                    (start, len, vec![len as usize])
                }
            };
            end = start + len;
            listed.push(Listed { name: &tensor.name, dtype: tensor.dtype, shape, start, end });
        }
        (listed, offsets)
    }
}

/// A tensor waiting for its place.
struct Item {
    step: usize,
    part: usize,
    /// Base entry whose place it takes, and order among those that share it.
    place: (usize, usize),
    from_base: bool,
    tensor: OutTensor,
}

/// Name and kind of the output's file for one of the base. What is only read becomes safetensors.
fn named(name: &str, writer: Option<&Arc<dyn WriteContainer>>) -> (String, Arc<dyn WriteContainer>) {
    match writer {
        Some(writer) => (name.to_owned(), Arc::clone(writer)),
        None => {
            let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
            (format!("{stem}{}", Safetensors.ending()), Arc::new(Safetensors))
        }
    }
}

/// Errors if two tensors of the output have one name: a base may have what looks like a part of a format that it is not in.
fn refuse_twins(base: &Checkpoint, items: &[Item], names: &mut HashSet<String>) -> Result<()> {
    let Some(twin) = items.iter().find(|item| !names.insert(item.tensor.name.clone())) else { return Ok(()) };
    let name = &twin.tensor.name;
    let Some(file) = base.get(name).and_then(|entry| base.files.get(entry.file)) else {
        return Err(mismatch("two tensors of the output would have this name").in_tensor(name).in_file(&base.path));
    };
    Err(mismatch("the output needs a tensor of this name for its format, and the base has another by it")
        .in_tensor(name)
        .in_file(file.path())
        .with_hint("it is left over from another format: take it out of the base"))
}

/// Places every part and fills in the steps' slots.
pub(super) fn lay_out(inputs: &Inputs, mut steps: Vec<Step>) -> Result<(Vec<OutFile>, Vec<Step>)> {
    let base = &inputs.base;
    let positions: HashMap<&str, usize> =
        base.entries.iter().enumerate().map(|(i, entry)| (entry.name.as_str(), i)).collect();
    let mut by_file: Vec<Vec<Item>> = base.files.iter().map(|_| Vec::new()).collect();
    for (number, step) in steps.iter_mut().enumerate() {
        let parts = parts(step);
        step.slots = vec![Slot { file: 0, tensor: 0 }; parts.len()];
        for (part, tensor) in parts.into_iter().enumerate() {
            let OutTensor { name, dtype, .. } = &tensor;
            let own = positions.get(name.as_str()).copied();
            let place = own.map_or((step.place, 1 + part), |own| (own, 0));
            let entry = base.entries.get(place.0).ok_or_else(|| nowhere(name))?;
            let items = by_file.get_mut(entry.file).ok_or_else(|| nowhere(name))?;
            let from_base = own.is_some() && entry.dtype == *dtype;
            items.push(Item { step: number, part, place, from_base, tensor });
        }
    }
    let (mut files, mut names) = (Vec::with_capacity(by_file.len()), HashSet::new());
    for (number, (mut items, source)) in by_file.into_iter().zip(&base.files).enumerate() {
        let name = source.path().file_name().and_then(|name| name.to_str()).unwrap_or("model.safetensors");
        let (name, container) = named(name, base.writers.get(number).and_then(Option::as_ref));
        if let Some(item) = items.iter().find(|item| !container.stores(item.tensor.dtype)) {
            let problem = format!("{} is a type that {} files do not have", item.tensor.dtype, container.ending());
            return Err(unsupported(problem).in_tensor(&item.tensor.name).with_hint("--to names another format"));
        }
        refuse_twins(base, &items, &mut names)?;
        sort(&mut items, &*container);
        let metadata = base.metadata.get(number).cloned().unwrap_or_default();
        files.push(file(number, (name, container, metadata), items, &mut steps));
    }
    Ok((files, steps))
}

/// Places every part in the one file of an export.
pub(super) fn lay_out_anew(
    base: &Checkpoint,
    exported: Exported,
    mut steps: Vec<Step>,
) -> Result<(Vec<OutFile>, Vec<Step>)> {
    let Exported { file: name, container, order, metadata, .. } = exported;
    let all = order.iter().flatten().enumerate();
    let places: HashMap<&str, usize> = all.map(|(at, name)| (name.as_str(), at)).collect();
    let mut items = Vec::new();
    for (number, step) in steps.iter_mut().enumerate() {
        let parts = parts(step);
        step.slots = vec![Slot { file: 0, tensor: 0 }; parts.len()];
        for (part, tensor) in parts.into_iter().enumerate() {
            let at = match &order {
                Some(_) => places.get(tensor.name.as_str()).copied().ok_or_else(|| nowhere(&tensor.name))?,
                None => 0,
            };
            items.push(Item { step: number, part, place: (at, 0), from_base: false, tensor });
        }
    }
    refuse_twins(base, &items, &mut HashSet::new())?;
    match order {
        Some(_) => items.sort_by_key(|item| item.place),
        None => sort(&mut items, &*container),
    }
    let files = vec![file(0, (name, container, metadata), items, &mut steps)];
    Ok((files, steps))
}

/// The tensors that a step writes.
fn parts(step: &Step) -> Vec<OutTensor> {
    let tensor = |name: &str, dtype, shape: Option<Vec<usize>>, bytes| OutTensor {
        name: name.to_owned(),
        dtype,
        shape,
        bytes,
        offset: 0,
    };
    match &step.action {
        Action::Copy { entry } => vec![tensor(&entry.name, entry.dtype, Some(entry.shape.clone()), entry.bytes)],
        Action::Recode(recode) => {
            let parts = recode.to.parts().iter();
            parts.map(|part| tensor(&part.name, part.dtype, part.shape.clone(), part.bytes)).collect()
        }
        Action::Constant(constant) => {
            vec![tensor(&constant.name, Dtype::F32, Some(vec![constant.values.len()]), constant.len())]
        }
    }
}

/// A file of tensors in their order, of which the steps hear.
fn file(
    number: usize,
    (name, container, metadata): (String, Arc<dyn WriteContainer>, Vec<(String, String)>),
    items: Vec<Item>,
    steps: &mut [Step],
) -> OutFile {
    let mut tensors = Vec::with_capacity(items.len());
    let mut offset = 0_u64;
    for item in items {
        if let Some(slot) = steps.get_mut(item.step).and_then(|step| step.slots.get_mut(item.part)) {
            *slot = Slot { file: number, tensor: tensors.len() };
        }
        let before = tensors.last().map(|before: &OutTensor| before.name.as_str());
        if !before.is_some_and(|before| container.follows(before, &item.tensor.name)) {
            offset = offset.next_multiple_of(container.alignment());
        }
        let bytes = item.tensor.bytes;
        tensors.push(OutTensor { offset, ..item.tensor });
        offset += bytes;
    }
    OutFile::new(name, container, metadata, tensors)
}

/// A tensor that no file of the base has a place for: there is none without a tensor.
fn nowhere(name: &str) -> Error {
    Error::new(Kind::Bug, "no file of the output takes it").in_tensor(name)
}

/// The base's order where all tensors keep name and type; else that of the container. Parts of unknown length come last either way.
fn sort(items: &mut [Item], container: &dyn WriteContainer) {
    if items.iter().all(|item| item.from_base) {
        items.sort_by_key(|item| (item.tensor.shape.is_none(), item.place));
    } else {
        items.sort_by(|a, b| {
            let late = |item: &Item| item.tensor.shape.is_none();
            let (one, other) = ((a.tensor.dtype, &*a.tensor.name), (b.tensor.dtype, &*b.tensor.name));
            late(a).cmp(&late(b)).then_with(|| container.order(one, other)).then(a.place.cmp(&b.place))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_read_is_written_as_safetensors_under_a_name_that_says_so() {
        let safetensors: Arc<dyn WriteContainer> = Arc::new(Safetensors);
        let name = |file: &str, writer| named(file, writer).0;
        let shard = "model-00001-of-00002.safetensors";
        assert_eq!(name(shard, Some(&safetensors)), shard);
        assert_eq!(name("pytorch_model.bin", None), "pytorch_model.safetensors");
    }
}
