//! Where every byte of the output goes.
//!
//! Files, names and order are the base's. A part whose length depends on the data (the JSON state of a double-quantized weight)
//! goes to the end of its file, and the header gets room for its longest form; so every other offset is known before the first
//! byte is written, and workers write disjoint ranges.

use std::collections::HashMap;

use super::{Action, Inputs, Step};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};

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
    pub(crate) fn new(name: String, metadata: Vec<(String, String)>, tensors: Vec<OutTensor>) -> Self {
        let mut file = Self { name, metadata, tensors, data_start: 0 };
        // The longest form has the largest lengths and offsets, hence the most digits.
        let longest = file.json(&HashMap::new()).0.len() as u64;
        file.data_start = 8 + longest.next_multiple_of(8);
        file
    }

    /// The most bytes the file can take.
    pub fn max_bytes(&self) -> u64 {
        self.data_start + self.tensors.last().map_or(0, |last| last.offset + last.bytes)
    }

    /// The header with the actual lengths of parts that were unknown, padded with spaces to the planned size.
    ///
    /// `lengths` maps the number of such a tensor to its length. Returns the bytes in front of the data, and the offset of each
    /// such tensor.
    pub fn header(&self, lengths: &HashMap<usize, u64>) -> (Vec<u8>, HashMap<usize, u64>) {
        let (json, offsets) = self.json(lengths);
        let room = self.data_start - 8;
        let mut bytes = room.to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(self.data_start as usize, b' ');
        (bytes, offsets)
    }

    fn json(&self, lengths: &HashMap<usize, u64>) -> (String, HashMap<usize, u64>) {
        let quote = |text: &str| serde_json::Value::from(text).to_string();
        let mut items = Vec::with_capacity(self.tensors.len() + 1);
        if !self.metadata.is_empty() {
            let pairs: Vec<String> =
                self.metadata.iter().map(|(key, value)| format!("{}:{}", quote(key), quote(value))).collect();
            items.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
        }
        let mut offsets = HashMap::new();
        let mut end = 0;
        for (i, tensor) in self.tensors.iter().enumerate() {
            let (start, len, shape) = match &tensor.shape {
                Some(shape) => (tensor.offset, tensor.bytes, shape.clone()),
                None => {
                    let len = lengths.get(&i).copied().unwrap_or(tensor.bytes);
                    offsets.insert(i, end);
                    (end, len, vec![len as usize])
                }
            };
            end = start + len;
            items.push(format!(
                "{}:{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{start},{end}]}}",
                quote(&tensor.name),
                tensor.dtype.name(),
                Dims(&shape)
            ));
        }
        (format!("{{{}}}", items.join(",")), offsets)
    }
}

/// Dimensions without spaces.
struct Dims<'a>(&'a [usize]);

impl std::fmt::Debug for Dims<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dims: Vec<String> = self.0.iter().map(usize::to_string).collect();
        write!(f, "[{}]", dims.join(","))
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

/// Places every part and fills in the steps' slots.
pub(super) fn lay_out(inputs: &Inputs, mut steps: Vec<Step>) -> Result<(Vec<OutFile>, Vec<Step>)> {
    let base = &inputs.base;
    let positions: HashMap<&str, usize> =
        base.entries.iter().enumerate().map(|(i, entry)| (entry.name.as_str(), i)).collect();
    let mut by_file: Vec<Vec<Item>> = base.files.iter().map(|_| Vec::new()).collect();
    for (number, step) in steps.iter_mut().enumerate() {
        let parts: Vec<(String, Dtype, Option<Vec<usize>>, u64)> = match &step.action {
            Action::Copy { entry } => {
                vec![(entry.name.clone(), entry.dtype, Some(entry.shape.clone()), entry.bytes)]
            }
            Action::Recode(recode) => recode
                .to
                .parts()
                .iter()
                .map(|part| (part.name.clone(), part.dtype, part.shape.clone(), part.bytes))
                .collect(),
        };
        step.slots = vec![Slot { file: 0, tensor: 0 }; parts.len()];
        for (part, (name, dtype, shape, bytes)) in parts.into_iter().enumerate() {
            let own = positions.get(name.as_str()).copied();
            let place = own.map_or((step.place, 1 + part), |own| (own, 0));
            let entry = base.entries.get(place.0).ok_or_else(|| nowhere(&name))?;
            let items = by_file.get_mut(entry.file).ok_or_else(|| nowhere(&name))?;
            let from_base = own.is_some() && entry.dtype == dtype;
            let tensor = OutTensor { name, dtype, shape, bytes, offset: 0 };
            items.push(Item { step: number, part, place, from_base, tensor });
        }
    }
    let mut files = Vec::with_capacity(by_file.len());
    for (number, (mut items, source)) in by_file.into_iter().zip(&base.files).enumerate() {
        sort(&mut items);
        let mut tensors = Vec::with_capacity(items.len());
        let mut offset = 0;
        for item in items {
            if let Some(slot) = steps.get_mut(item.step).and_then(|step| step.slots.get_mut(item.part)) {
                *slot = Slot { file: number, tensor: tensors.len() };
            }
            let bytes = item.tensor.bytes;
            tensors.push(OutTensor { offset, ..item.tensor });
            offset += bytes;
        }
        let name = source.path().file_name().and_then(|name| name.to_str()).unwrap_or("model.safetensors").to_owned();
        files.push(OutFile::new(name, base.metadata.get(number).cloned().unwrap_or_default(), tensors));
    }
    Ok((files, steps))
}

/// A tensor that no file of the base has a place for: there is none without a tensor.
fn nowhere(name: &str) -> Error {
    Error::new(Kind::Bug, "no file of the output takes it").in_tensor(name)
}

/// The base's order where all tensors keep name and type; else the order of the safetensors writer (alignment, then name). Parts of
/// unknown length come last either way.
fn sort(items: &mut [Item]) {
    if items.iter().all(|item| item.from_base) {
        items.sort_by_key(|item| (item.tensor.shape.is_none(), item.place));
    } else {
        items.sort_by(|a, b| {
            let key = |item: &Item| (item.tensor.shape.is_none(), std::cmp::Reverse(item.tensor.dtype));
            key(a).cmp(&key(b)).then_with(|| a.tensor.name.cmp(&b.tensor.name))
        });
    }
}
