//! A reader for the pickle inside a torch `.bin`: it builds tensors' descriptions and nothing else.
//!
//! A pickle is a program. This interpreter knows the opcodes that `torch.save` of a state dict emits, and calls
//! exactly three callables, all of them imitated here: `OrderedDict`, `_rebuild_tensor_v2`, `_rebuild_parameter`.
//! Any other global is an error that names it; nothing of the file is ever executed. Values live in an arena and
//! refer to each other by index, so neither deep nor shared nor cyclic structures cost more than the pickle's own
//! size. Opcodes: CPython's `pickletools.py`; tensor layout: `torch/_utils.py`, `torch/serialization.py`.
//!
//! Memory is in proportion to the pickle's length ([`Budget`]): what a byte may cost is bounded, so that a small file cannot fill a machine.

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

/// Place of a value in the arena.
type Id = u32;

enum Node<'a> {
    /// A value that nothing looks at: none, booleans, floats, byte strings.
    Other,
    Int(i64),
    Text(&'a str),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Callable),
    /// The tuple that describes a storage.
    Storage(Id),
    /// The arguments of `_rebuild_tensor_v2`.
    Tensor(Id),
}

#[derive(Clone, Copy)]
enum Callable {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

/// Values that need no place of their own: what nothing looks at, the empty tuple, and the numbers of one byte.
const OTHER: Id = 0;
const EMPTY: Id = 1;
const FIRST_BYTE: Id = 2;
const SHARED: Id = FIRST_BYTE + 256;

/// On the stack: where a list or a tuple begins.
const MARK: Id = Id::MAX;

/// How much of each kind a pickle of some length may hold. `torch.save` spends 65 bytes and more on a tensor, for ten values, some
/// twenty places on the stack and a dozen in the memo, so real files stay far below.
struct Budget {
    /// Values in the arena, and places on the stack.
    values: usize,
    /// Indices of the memo.
    memo: usize,
    /// Fields and dimensions of the tensors that come out.
    fields: usize,
}

impl Budget {
    fn of(bytes: usize) -> Self {
        /// A few values more, for pickles of a handful of bytes.
        const FREE: usize = 64;
        let part = |share: usize| bytes.checked_div(share).unwrap_or(0).saturating_add(FREE);
        Self { values: part(4), memo: part(2), fields: part(4) }
    }
}

/// Reads the pickled state dict: name and description of every tensor, in file order.
pub(crate) fn parse(pickle: &[u8]) -> Result<Vec<(String, TensorRef)>> {
    let mut machine = Machine {
        bytes: pickle,
        at: 0,
        budget: Budget::of(pickle.len()),
        nodes: Vec::new(),
        stack: Vec::new(),
        memo: Vec::new(),
        items: 0,
    };
    machine.nodes.extend([Node::Other, Node::Tuple(Box::default())]);
    machine.nodes.extend((0..256).map(Node::Int));
    let root = machine.run()?;
    machine.state_dict(root)
}

fn too_much() -> crate::error::Error {
    malformed("the pickle makes far more values than a state dict of its length has")
        .with_hint("do not trust this file; save the adapter as safetensors")
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    budget: Budget,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// By index; [`MARK`] where nothing was stored.
    memo: Vec<Id>,
    /// Members of all tuples, lists and dicts.
    items: usize,
}

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let slice = self.at.checked_add(n).and_then(|end| self.bytes.get(self.at..end));
        self.at = self.at.saturating_add(n);
        slice.ok_or_else(|| malformed("the pickle ends in the middle of a value"))
    }

    fn number(&mut self, width: usize) -> Result<u64> {
        let bytes = self.take(width)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn sized(&mut self, width: usize) -> Result<&'a [u8]> {
        let n = self.number(width)?;
        self.take(usize::try_from(n).unwrap_or(usize::MAX))
    }

    fn text(&mut self, width: usize) -> Result<&'a str> {
        std::str::from_utf8(self.sized(width)?).map_err(|_| malformed("a string in the pickle is not UTF-8"))
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let n = rest.iter().position(|&b| b == b'\n').ok_or_else(|| malformed("the pickle ends in a name"))?;
        let line = self.take(n)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| malformed("a name in the pickle is not UTF-8"))
    }

    fn node(&self, id: Id) -> &Node<'a> {
        self.nodes.get(id as usize).unwrap_or(&Node::Other)
    }

    fn push(&mut self, node: Node<'a>) -> Result<()> {
        if self.nodes.len() >= self.budget.values.saturating_add(SHARED as usize) {
            return Err(too_much());
        }
        let id = Id::try_from(self.nodes.len()).map_err(|_| too_much())?;
        self.nodes.push(node);
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<()> {
        if self.stack.len() >= self.budget.values {
            return Err(too_much());
        }
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        let id = self.stack.pop().filter(|&id| id != MARK);
        id.ok_or_else(|| malformed("the pickle takes a value from an empty stack"))
    }

    fn top(&self) -> Result<Id> {
        let id = self.stack.last().copied().filter(|&id| id != MARK);
        id.ok_or_else(|| malformed("the pickle's stack is empty"))
    }

    /// What stands above the last mark, which goes too.
    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.stack.iter().rposition(|&id| id == MARK);
        let mark = mark.ok_or_else(|| malformed("the pickle closes a list that was not opened"))?;
        let items = self.stack.get(mark..).unwrap_or_default().iter().skip(1).copied().collect();
        self.stack.truncate(mark);
        Ok(items)
    }

    fn push_tuple(&mut self, items: Vec<Id>) -> Result<()> {
        self.count(items.len())?;
        self.push(Node::Tuple(items.into_boxed_slice()))
    }

    fn pop_tuple(&mut self, n: usize) -> Result<()> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
        items.reverse();
        self.push_tuple(items)
    }

    /// Members of a collection: each stood on the stack, which took a byte at least.
    fn count(&mut self, members: usize) -> Result<()> {
        self.items = self.items.saturating_add(members);
        if self.items > self.budget.memo { Err(too_much()) } else { Ok(()) }
    }

    fn recall(&mut self, key: u64) -> Result<()> {
        let id = usize::try_from(key).ok().and_then(|key| self.memo.get(key)).copied().filter(|&id| id != MARK);
        self.push_id(id.ok_or_else(|| malformed("the pickle refers to a value it never stored"))?)
    }

    fn remember(&mut self, key: u64) -> Result<()> {
        let id = self.top()?;
        let key = usize::try_from(key).ok().filter(|&key| key < self.budget.memo);
        let key = key.ok_or_else(|| malformed("memo index out of range"))?;
        if key >= self.memo.len() {
            self.memo.resize(key.saturating_add(1), MARK);
        }
        if let Some(place) = self.memo.get_mut(key) {
            *place = id;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<Id> {
        loop {
            let opcode = self.number(1)? as u8;
            match opcode {
                b'.' => return self.pop(),
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'(' => self.push_id(MARK)?,
                b'0' => drop(self.stack.pop()),
                b'1' => drop(self.pop_to_mark()?),
                b'2' => {
                    let top = self.top()?;
                    self.push_id(top)?;
                }
                b'N' | 0x88 | 0x89 => self.push_id(OTHER)?,
                b'K' => {
                    let value = self.number(1)? as Id;
                    self.push_id(FIRST_BYTE.saturating_add(value))?;
                }
                b'M' => {
                    let value = self.number(2)?;
                    self.push(Node::Int(value as i64))?;
                }
                b'J' => {
                    let value = self.number(4)? as u32 as i32;
                    self.push(Node::Int(value.into()))?;
                }
                0x8a => self.long()?,
                b'G' => {
                    self.take(8)?;
                    self.push_id(OTHER)?;
                }
                b'X' | b'T' => self.push_text(4)?,
                0x8c | b'U' => self.push_text(1)?,
                0x8d => self.push_text(8)?,
                b'C' => self.push_bytes(1)?,
                b'B' => self.push_bytes(4)?,
                b')' => self.push_id(EMPTY)?,
                0x85 => self.pop_tuple(1)?,
                0x86 => self.pop_tuple(2)?,
                0x87 => self.pop_tuple(3)?,
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push_tuple(items)?;
                }
                b']' => self.push(Node::List(Vec::new()))?,
                b'l' => {
                    let items = self.pop_to_mark()?;
                    self.count(items.len())?;
                    self.push(Node::List(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(&[item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.extend(&items)?;
                }
                b'}' => self.push(Node::Dict(Vec::new()))?,
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
                    let (module, name) = (self.text_of(module)?, self.text_of(name)?);
                    self.push_global(module, name)?;
                }
                b'R' => self.call()?,
                // State set on an OrderedDict (its `_metadata`): of no use here.
                b'b' => drop(self.pop()?),
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Node::Storage(id))?;
                }
                other => {
                    return Err(unsupported(format!("pickle opcode 0x{other:02x} is not one that torch.save writes"))
                        .with_hint("nothing was executed; save the adapter as safetensors"));
                }
            }
        }
    }

    fn long(&mut self) -> Result<()> {
        let bytes = self.sized(1)?;
        if bytes.len() > 8 {
            return Err(malformed("an integer of more than 64 bits"));
        }
        let sign = if bytes.last().is_some_and(|&b| b & 0x80 != 0) { -1 } else { 0 };
        self.push(Node::Int(bytes.iter().rev().fold(sign, |number, &byte| number << 8 | i64::from(byte))))
    }

    fn push_text(&mut self, width: usize) -> Result<()> {
        let text = self.text(width)?;
        self.push(Node::Text(text))
    }

    fn push_bytes(&mut self, width: usize) -> Result<()> {
        self.sized(width)?;
        self.push_id(OTHER)
    }

    fn extend(&mut self, items: &[Id]) -> Result<()> {
        self.count(items.len())?;
        let list = self.top()?;
        match self.nodes.get_mut(list as usize) {
            Some(Node::List(have)) => have.extend(items),
            _ => return Err(malformed("the pickle appends to what is not a list")),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id]) -> Result<()> {
        self.count(items.len())?;
        let dict = self.top()?;
        match self.nodes.get_mut(dict as usize) {
            Some(Node::Dict(have)) if items.len().is_multiple_of(2) => {
                have.extend(items.as_chunks().0.iter().map(|&[key, value]| (key, value)));
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
        self.push(Node::Global(callable))
    }

    fn call(&mut self) -> Result<()> {
        let arguments = self.pop()?;
        let callee = self.pop()?;
        let (Node::Global(callable), Node::Tuple(args)) = (self.node(callee), self.node(arguments)) else {
            return Err(malformed("the pickle calls what is not a function"));
        };
        let node = match callable {
            Callable::OrderedDict if args.is_empty() => Node::Dict(Vec::new()),
            Callable::RebuildTensor => Node::Tensor(arguments),
            Callable::RebuildParameter => match args.first().map(|&id| self.node(id)) {
                Some(Node::Tensor(tensor)) => Node::Tensor(*tensor),
                _ => return Err(malformed("a parameter without its tensor")),
            },
            _ => return Err(malformed("the pickle calls a type with unexpected arguments")),
        };
        self.push(node)
    }

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

    fn text_of(&self, id: Id) -> Result<&'a str> {
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

    fn state_dict(&self, root: Id) -> Result<Vec<(String, TensorRef)>> {
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

    /// What shares one long value many times over must not copy it each time.
    #[test]
    fn shared_values_are_not_multiplied() {
        let tensor = |shape: &[u8]| {
            let mut pickle = b"\x80\x02}q\x00(ctorch._utils\n_rebuild_tensor_v2\nq\x010".to_vec();
            pickle.extend(
                b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQq\x020",
            );
            pickle.extend(b"h\x01(h\x02K\x00");
            pickle.extend(shape);
            pickle.extend(shape);
            pickle.extend(b"tRq\x030");
            pickle
        };
        let two = |pickle: &mut Vec<u8>| pickle.extend(b"U\x01ah\x03U\x01bh\x03u.");
        let mut pickle = tensor(b"K\x02K\x02\x86");
        two(&mut pickle);
        assert_eq!(parse(&pickle).unwrap().len(), 2);
        let mut pickle = tensor(&[b"(".as_slice(), &b"K\x01".repeat(65), b"t"].concat());
        two(&mut pickle);
        assert!(parse(&pickle).unwrap_err().to_string().contains("65 dimensions"));
        let mut pickle = tensor(&[b"(".as_slice(), &b"K\x01".repeat(64), b"t"].concat());
        for i in 0..60_u8 {
            pickle.extend([b'U', 2, b'a' + i % 20, b'a' + i / 20, b'h', 3]);
        }
        pickle.extend(b"u.");
        assert!(parse(&pickle).unwrap_err().to_string().contains("far more values"));
        let mut pickle = tensor(b"K\x02K\x02\x86");
        pickle.extend(b"U\x01ah\x03U\x01ah\x03u.");
        assert!(parse(&pickle).unwrap_err().to_string().contains("stands twice"));
    }

    #[test]
    fn truncation_is_an_error_at_every_byte() {
        let whole = b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x01s.";
        for n in 0..whole.len() {
            assert!(parse(&whole[..n]).is_err());
        }
    }
}
