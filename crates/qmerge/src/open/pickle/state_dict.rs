//! What the values of a pickle mean: a dict of tensors.

use super::TensorRef;
use super::values::{Callable, Id, Node, Values, too_much};
use crate::dtype::Dtype;
use crate::error::{Result, malformed};

impl<'a> Values<'a> {
    /// `_rebuild_tensor_v2(storage, storage_offset, size, stride, requires_grad, backward_hooks, …)`.
    fn rebuild(&self, arguments: Id) -> Result<TensorRef> {
        let Node::Tuple(fields) = self.node(arguments) else { return Err(malformed("a tensor without fields")) };
        let [storage, offset, shape, stride, ..] = fields[..] else {
            return Err(malformed("a tensor with too few fields"));
        };
        let Node::Storage(storage) = self.node(storage) else {
            return Err(malformed("a tensor without a storage"));
        };
        let (storage, dtype, storage_elements) = self.storage(*storage)?;
        Ok(TensorRef {
            storage,
            dtype,
            storage_elements,
            offset: self.size_of(offset)? as u64,
            shape: self.sizes_of(shape)?,
            stride: self.sizes_of(stride)?,
        })
    }

    /// `('storage', torch.FloatStorage, key, location, elements)`.
    fn storage(&self, id: Id) -> Result<(String, Dtype, u64)> {
        let Node::Tuple(fields) = self.node(id) else { return Err(malformed("a storage that is not a tuple")) };
        let [_, kind, key, _, elements] = fields[..] else {
            return Err(malformed("a storage with unexpected fields"));
        };
        let Node::Global(Callable::Storage(dtype)) = self.node(kind) else {
            return Err(malformed("a storage of no known type"));
        };
        let key = self.text_of(key)?;
        // `torch.save` counts them.
        if key.len() > 20 {
            return Err(malformed("a storage's key is no number"));
        }
        Ok((key.to_owned(), *dtype, self.size_of(elements)? as u64))
    }

    pub(super) fn text_of(&self, id: Id) -> Result<&'a str> {
        match self.node(id) {
            Node::Text(text) => Ok(text),
            _ => Err(malformed("expected a string in the pickle")),
        }
    }

    fn size_of(&self, id: Id) -> Result<usize> {
        match self.node(id) {
            Node::Int(value) => usize::try_from(*value).map_err(|_| malformed("a negative size")),
            _ => Err(malformed("expected a number in the pickle")),
        }
    }

    fn sizes_of(&self, id: Id) -> Result<Vec<usize>> {
        /// torch's own limit.
        const MAX_DIMENSIONS: usize = 64;
        let items = match self.node(id) {
            Node::Tuple(items) => &items[..],
            Node::List(items) => items,
            _ => return Err(malformed("expected a shape in the pickle")),
        };
        if items.len() > MAX_DIMENSIONS {
            return Err(malformed(format!("a tensor of {} dimensions", items.len())));
        }
        items.iter().map(|&item| self.size_of(item)).collect()
    }

    pub(super) fn state_dict(&self, root: Id) -> Result<Vec<(String, TensorRef)>> {
        /// Fields of a tensor beside its dimensions.
        const FIELDS: usize = 4;
        let Node::Dict(items) = self.node(root) else {
            return Err(malformed("the pickle holds no state dict"));
        };
        // Names and tensors may be recalled any number of times, and are copied here.
        let mut names = std::collections::HashSet::new();
        let mut left = self.budget.fields;
        let mut found = Vec::new();
        for &(key, value) in items {
            let Node::Text(name) = self.node(key) else { return Err(malformed("a tensor without a name")) };
            if !names.insert(*name) {
                return Err(malformed("the name stands twice").in_tensor(name));
            }
            let Node::Tensor(arguments) = self.node(value) else {
                return Err(malformed("its value is not a tensor").in_tensor(name));
            };
            let tensor = self.rebuild(*arguments).map_err(|error| error.in_tensor(name))?;
            let cost = FIELDS.saturating_add(tensor.shape.len());
            left = left.checked_sub(cost).ok_or_else(too_much)?;
            found.push(((*name).to_owned(), tensor));
        }
        Ok(found)
    }
}

pub(super) fn storage_dtype(class: &str) -> Option<Dtype> {
    Some(match class {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::Bool,
        _ => return None,
    })
}
