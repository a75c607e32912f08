//! A reader for the pickle inside a torch `.bin`: it builds tensors' descriptions and nothing else.
//!
//! A pickle is a program. This interpreter knows the opcodes that `torch.save` of a state dict emits, and calls
//! exactly three callables, all of them imitated here: `OrderedDict`, `_rebuild_tensor_v2`, `_rebuild_parameter`.
//! Any other global is an error that names it; nothing of the file is ever executed. Values live in an arena and
//! refer to each other by index, so neither deep nor shared nor cyclic structures cost more than the pickle's own
//! size. Opcodes: CPython's `pickletools.py`; tensor layout: `torch/_utils.py`, `torch/serialization.py`.

use std::collections::HashMap;

use crate::dtype::Dtype;
use crate::error::{Result, malformed, unsupported};

/// A tensor as the pickle describes it: a view of a storage that lies in another member of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorRef {
    /// Archive member `data/KEY`.
    pub(crate) storage: String,
    /// Element type.
    pub(crate) dtype: Dtype,
    /// Elements in the whole storage.
    pub(crate) storage_elements: u64,
    /// First element of the view.
    pub(crate) offset: u64,
    /// Dimensions.
    pub(crate) shape: Vec<usize>,
    /// Strides in elements.
    pub(crate) stride: Vec<usize>,
}

type Id = usize;

enum Node {
    None,
    Bool,
    Int(i64),
    Float,
    Text(String),
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Callable),
    Storage { key: String, dtype: Dtype, elements: u64 },
    Tensor(TensorRef),
}

#[derive(Clone, Copy)]
enum Callable {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

/// Reads the pickled state dict: name and description of every tensor, in file order.
pub(crate) fn parse(pickle: &[u8]) -> Result<Vec<(String, TensorRef)>> {
    let mut machine = Machine { bytes: pickle, at: 0, nodes: Vec::new(), stack: Vec::new(), memo: HashMap::new() };
    let root = machine.run()?;
    machine.state_dict(root)
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    /// `None` is a mark.
    stack: Vec<Option<Id>>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let slice = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end));
        self.at = self.at.saturating_add(n);
        slice.ok_or_else(|| malformed("the pickle ends in the middle of a value"))
    }

    fn number(&mut self, width: usize) -> Result<u64> {
        let mut le = [0; 8];
        le[..width].copy_from_slice(self.take(width)?);
        Ok(u64::from_le_bytes(le))
    }

    fn sized(&mut self, width: usize) -> Result<&'a [u8]> {
        let n = self.number(width)?;
        self.take(usize::try_from(n).unwrap_or(usize::MAX))
    }

    fn text(&mut self, width: usize) -> Result<String> {
        let bytes = self.sized(width)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| malformed("a string in the pickle is not UTF-8"))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let n = rest.iter().position(|&b| b == b'\n').ok_or_else(|| malformed("the pickle ends in a name"))?;
        let line = self.take(n + 1)?;
        std::str::from_utf8(&line[..n]).map_err(|_| malformed("a name in the pickle is not UTF-8"))
    }

    fn push(&mut self, node: Node) {
        self.nodes.push(node);
        self.stack.push(Some(self.nodes.len() - 1));
    }

    fn pop(&mut self) -> Result<Id> {
        self.stack.pop().flatten().ok_or_else(|| malformed("the pickle takes a value from an empty stack"))
    }

    fn top(&self) -> Result<Id> {
        self.stack.last().copied().flatten().ok_or_else(|| malformed("the pickle's stack is empty"))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self
            .stack
            .iter()
            .rposition(Option::is_none)
            .ok_or_else(|| malformed("the pickle closes a list that was not opened"))?;
        let items = self.stack.drain(mark..).flatten().collect();
        Ok(items)
    }

    fn pop_tuple(&mut self, n: usize) -> Result<()> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
        items.reverse();
        self.push(Node::Tuple(items));
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<()> {
        let id = u32::try_from(key).ok().and_then(|key| self.memo.get(&key).copied());
        self.stack.push(Some(id.ok_or_else(|| malformed("the pickle refers to a value it never stored"))?));
        Ok(())
    }

    fn remember(&mut self, key: u64) -> Result<()> {
        let id = self.top()?;
        let key = u32::try_from(key).map_err(|_| malformed("memo index out of range"))?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn run(&mut self) -> Result<Id> {
        loop {
            let [opcode] = *self.take(1)? else { unreachable!("take(1) gives one byte") };
            match opcode {
                b'.' => return self.pop(),
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'(' => self.stack.push(None),
                b'0' => drop(self.stack.pop()),
                b'1' => drop(self.pop_to_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(Some(top));
                }
                b'N' => self.push(Node::None),
                0x88 | 0x89 => self.push(Node::Bool),
                b'K' => self.int(1)?,
                b'M' => self.int(2)?,
                b'J' => {
                    let value = self.number(4)? as u32 as i32;
                    self.push(Node::Int(value.into()));
                }
                0x8a => self.long()?,
                b'G' => {
                    self.take(8)?;
                    self.push(Node::Float);
                }
                b'X' => self.push_text(4)?,
                0x8c | b'U' => self.push_text(1)?,
                b'T' => self.push_text(4)?,
                0x8d => self.push_text(8)?,
                b'C' => self.push_bytes(1)?,
                b'B' => self.push_bytes(4)?,
                b')' => self.push(Node::Tuple(Vec::new())),
                0x85..=0x87 => self.pop_tuple(usize::from(opcode - 0x84))?,
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::Tuple(items));
                }
                b']' => self.push(Node::List(Vec::new())),
                b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::List(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.extend(items)?;
                }
                b'}' => self.push(Node::Dict(Vec::new())),
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.insert(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.insert(&items)?;
                }
                b'h' => {
                    let key = self.number(1)?;
                    self.recall(key)?;
                }
                b'j' => {
                    let key = self.number(4)?;
                    self.recall(key)?;
                }
                b'q' => {
                    let key = self.number(1)?;
                    self.remember(key)?;
                }
                b'r' => {
                    let key = self.number(4)?;
                    self.remember(key)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.push_global(module, name)?;
                }
                0x93 => {
                    let name = self.pop()?;
                    let module = self.pop()?;
                    let (module, name) = (self.text_of(module)?.to_owned(), self.text_of(name)?.to_owned());
                    self.push_global(&module, &name)?;
                }
                b'R' => self.call()?,
                // State set on an OrderedDict (its `_metadata`): of no use here.
                b'b' => drop(self.pop()?),
                b'Q' => self.storage()?,
                other => {
                    return Err(unsupported(format!("pickle opcode 0x{other:02x} is not one that torch.save writes"))
                        .with_hint("nothing was executed; save the adapter as safetensors"));
                }
            }
        }
    }

    fn int(&mut self, width: usize) -> Result<()> {
        let value = self.number(width)?;
        self.push(Node::Int(value as i64));
        Ok(())
    }

    fn long(&mut self) -> Result<()> {
        let bytes = self.sized(1)?;
        if bytes.len() > 8 {
            return Err(malformed("an integer of more than 64 bits"));
        }
        let negative = bytes.last().is_some_and(|&b| b & 0x80 != 0);
        let mut le = [if negative { 0xff } else { 0 }; 8];
        le[..bytes.len()].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(le)));
        Ok(())
    }

    fn push_text(&mut self, width: usize) -> Result<()> {
        let text = self.text(width)?;
        self.push(Node::Text(text));
        Ok(())
    }

    fn push_bytes(&mut self, width: usize) -> Result<()> {
        self.sized(width)?;
        self.push(Node::Bytes);
        Ok(())
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<()> {
        let list = self.top()?;
        match &mut self.nodes[list] {
            Node::List(have) => have.extend(items),
            _ => return Err(malformed("the pickle appends to what is not a list")),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<()> {
        let dict = self.top()?;
        match &mut self.nodes[dict] {
            Node::Dict(have) if items.len().is_multiple_of(2) => {
                have.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            _ => return Err(malformed("the pickle sets an item on what is not a dict")),
        }
        Ok(())
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<()> {
        let callable = match (module, name) {
            ("collections", "OrderedDict") => Callable::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Callable::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Callable::RebuildParameter,
            ("torch", storage) if storage_dtype(storage).is_some() => {
                Callable::Storage(storage_dtype(storage).unwrap_or(Dtype::F32))
            }
            _ => {
                return Err(unsupported(format!(
                    "the pickle wants to call `{module}.{name}`, which is no part of a state dict"
                ))
                .with_hint("nothing was executed; do not trust this file, or save the adapter as safetensors"));
            }
        };
        self.push(Node::Global(callable));
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        let args = self.pop()?;
        let callee = self.pop()?;
        let (Node::Global(callable), Node::Tuple(args)) = (&self.nodes[callee], &self.nodes[args]) else {
            return Err(malformed("the pickle calls what is not a function"));
        };
        let node = match callable {
            Callable::OrderedDict if args.is_empty() => Node::Dict(Vec::new()),
            Callable::RebuildTensor => Node::Tensor(self.rebuild(args)?),
            Callable::RebuildParameter => match args.first().map(|&id| &self.nodes[id]) {
                Some(Node::Tensor(tensor)) => Node::Tensor(tensor.clone()),
                _ => return Err(malformed("a parameter without its tensor")),
            },
            _ => return Err(malformed("the pickle calls a type with unexpected arguments")),
        };
        self.push(node);
        Ok(())
    }

    /// `_rebuild_tensor_v2(storage, storage_offset, size, stride, requires_grad, backward_hooks, …)`.
    fn rebuild(&self, args: &[Id]) -> Result<TensorRef> {
        let [storage, offset, shape, stride, ..] = args else {
            return Err(malformed("a tensor with too few fields"));
        };
        let Node::Storage { key, dtype, elements } = &self.nodes[*storage] else {
            return Err(malformed("a tensor without a storage"));
        };
        Ok(TensorRef {
            storage: key.clone(),
            dtype: *dtype,
            storage_elements: *elements,
            offset: self.size_of(*offset)? as u64,
            shape: self.sizes_of(*shape)?,
            stride: self.sizes_of(*stride)?,
        })
    }

    /// `('storage', torch.FloatStorage, key, location, elements)`.
    fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let node = match &self.nodes[id] {
            Node::Tuple(items) => match items[..] {
                [_, kind, key, _, elements] => match &self.nodes[kind] {
                    Node::Global(Callable::Storage(dtype)) => Node::Storage {
                        key: self.text_of(key)?.to_owned(),
                        dtype: *dtype,
                        elements: self.size_of(elements)? as u64,
                    },
                    _ => return Err(malformed("a storage of no known type")),
                },
                _ => return Err(malformed("a storage with unexpected fields")),
            },
            _ => return Err(malformed("a storage that is not a tuple")),
        };
        self.push(node);
        Ok(())
    }

    fn text_of(&self, id: Id) -> Result<&str> {
        match &self.nodes[id] {
            Node::Text(text) => Ok(text),
            _ => Err(malformed("expected a string in the pickle")),
        }
    }

    fn size_of(&self, id: Id) -> Result<usize> {
        match &self.nodes[id] {
            Node::Int(value) => usize::try_from(*value).map_err(|_| malformed("a negative size")),
            _ => Err(malformed("expected a number in the pickle")),
        }
    }

    fn sizes_of(&self, id: Id) -> Result<Vec<usize>> {
        match &self.nodes[id] {
            Node::Tuple(items) | Node::List(items) => items.iter().map(|&item| self.size_of(item)).collect(),
            _ => Err(malformed("expected a shape in the pickle")),
        }
    }

    fn state_dict(&self, root: Id) -> Result<Vec<(String, TensorRef)>> {
        let Node::Dict(items) = &self.nodes[root] else {
            return Err(malformed("the pickle holds no state dict"));
        };
        items
            .iter()
            .map(|&(key, value)| match (&self.nodes[key], &self.nodes[value]) {
                (Node::Text(name), Node::Tensor(tensor)) => Ok((name.clone(), tensor.clone())),
                (Node::Text(name), _) => Err(malformed("its value is not a tensor").in_tensor(name)),
                _ => Err(malformed("a tensor without a name")),
            })
            .collect()
    }
}

fn storage_dtype(class: &str) -> Option<Dtype> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `pickle.dumps(Evil(), protocol=2)` where `__reduce__` gives `(os.system, ("touch /tmp/x",))`.
    #[test]
    fn code_is_refused_by_name() {
        let evil = b"\x80\x02cposix\nsystem\nq\x00X\x0c\x00\x00\x00touch /tmp/xq\x01\x85q\x02Rq\x03.";
        let error = parse(evil).unwrap_err();
        assert!(error.to_string().contains("posix.system"), "{error}");
    }

    #[test]
    fn structures_that_would_explode_do_not() {
        // t = (t, t) forty times over: 2^40 leaves if values were copied.
        let mut bomb = b"\x80\x02)".to_vec();
        for _ in 0..40 {
            bomb.extend(b"2\x86");
        }
        bomb.push(b'.');
        assert!(parse(&bomb).is_err());
        // A million nested lists: no recursion on the way out either.
        let mut deep = b"\x80\x02".to_vec();
        deep.extend(std::iter::repeat_n(b"(".as_slice(), 500_000).flatten());
        deep.extend(std::iter::repeat_n(b"l".as_slice(), 500_000).flatten());
        deep.push(b'.');
        assert!(parse(&deep).is_err());
    }

    #[test]
    fn truncation_is_an_error_at_every_byte() {
        let whole = b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x01s.";
        for n in 0..whole.len() {
            assert!(parse(&whole[..n]).is_err());
        }
    }
}
