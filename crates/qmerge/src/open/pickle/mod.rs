//! A reader for the pickle inside a torch `.bin`: it builds tensors' descriptions and nothing else.
//!
//! A pickle is a program. This interpreter knows the opcodes that `torch.save` of a state dict emits, and calls
//! exactly three callables, all of them imitated here: `OrderedDict`, `_rebuild_tensor_v2`, `_rebuild_parameter`.
//! Any other global is an error that names it; nothing of the file is ever executed. Values live in an arena and
//! refer to each other by index, so neither deep nor shared nor cyclic structures cost more than the pickle's own
//! size. Opcodes: CPython's `pickletools.py`; tensor layout: `torch/_utils.py`, `torch/serialization.py`.
//!
//! Memory is in proportion to the pickle's length ([`Budget`]): what a byte may cost is bounded, so that a small file cannot fill a machine.

mod state_dict;
mod values;

use values::{Budget, Callable, EMPTY, FIRST_BYTE, Id, MARK, Node, OTHER, Values};

use self::state_dict::storage_dtype;
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

/// Reads the pickled state dict: name and description of every tensor, in file order.
pub(crate) fn parse(pickle: &[u8]) -> Result<Vec<(String, TensorRef)>> {
    let mut machine = Machine { bytes: pickle, at: 0, values: Values::new(Budget::of(pickle.len())) };
    let root = machine.run()?;
    machine.values.state_dict(root)
}

/// The interpreter.
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Values<'a>,
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

    fn run(&mut self) -> Result<Id> {
        loop {
            let opcode = self.number(1)? as u8;
            match opcode {
                b'.' => return self.values.pop(),
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'(' => self.values.push_id(MARK)?,
                b'0' => drop(self.values.stack.pop()),
                b'1' => drop(self.values.pop_to_mark()?),
                b'2' => {
                    let top = self.values.top()?;
                    self.values.push_id(top)?;
                }
                b'N' | 0x88 | 0x89 => self.values.push_id(OTHER)?,
                b'K' => {
                    let value = self.number(1)? as Id;
                    self.values.push_id(FIRST_BYTE.saturating_add(value))?;
                }
                b'M' => {
                    let value = self.number(2)?;
                    self.values.push(Node::Int(value as i64))?;
                }
                b'J' => {
                    let value = self.number(4)? as u32 as i32;
                    self.values.push(Node::Int(value.into()))?;
                }
                0x8a => self.long()?,
                b'G' => {
                    self.take(8)?;
                    self.values.push_id(OTHER)?;
                }
                b'X' | b'T' => self.push_text(4)?,
                0x8c | b'U' => self.push_text(1)?,
                0x8d => self.push_text(8)?,
                b'C' => self.push_bytes(1)?,
                b'B' => self.push_bytes(4)?,
                b')' => self.values.push_id(EMPTY)?,
                0x85 => self.values.pop_tuple(1)?,
                0x86 => self.values.pop_tuple(2)?,
                0x87 => self.values.pop_tuple(3)?,
                b't' => {
                    let items = self.values.pop_to_mark()?;
                    self.values.push_tuple(items)?;
                }
                b']' => self.values.push(Node::List(Vec::new()))?,
                b'l' => {
                    let items = self.values.pop_to_mark()?;
                    self.values.count(items.len())?;
                    self.values.push(Node::List(items))?;
                }
                b'a' => {
                    let item = self.values.pop()?;
                    self.values.extend(&[item])?;
                }
                b'e' => {
                    let items = self.values.pop_to_mark()?;
                    self.values.extend(&items)?;
                }
                b'}' => self.values.push(Node::Dict(Vec::new()))?,
                b's' => {
                    let value = self.values.pop()?;
                    let key = self.values.pop()?;
                    self.values.insert(&[key, value])?;
                }
                b'u' => {
                    let items = self.values.pop_to_mark()?;
                    self.values.insert(&items)?;
                }
                b'h' => {
                    let key = self.number(1)?;
                    self.values.recall(key)?;
                }
                b'j' => {
                    let key = self.number(4)?;
                    self.values.recall(key)?;
                }
                b'q' => {
                    let key = self.number(1)?;
                    self.values.remember(key)?;
                }
                b'r' => {
                    let key = self.number(4)?;
                    self.values.remember(key)?;
                }
                0x94 => self.values.remember(self.values.memo.len() as u64)?,
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.push_global(module, name)?;
                }
                0x93 => {
                    let name = self.values.pop()?;
                    let module = self.values.pop()?;
                    let (module, name) = (self.values.text_of(module)?, self.values.text_of(name)?);
                    self.push_global(module, name)?;
                }
                b'R' => self.call()?,
                // State set on an OrderedDict (its `_metadata`): of no use here.
                b'b' => drop(self.values.pop()?),
                b'Q' => {
                    let id = self.values.pop()?;
                    self.values.push(Node::Storage(id))?;
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
        self.values.push(Node::Int(bytes.iter().rev().fold(sign, |number, &byte| number << 8 | i64::from(byte))))
    }

    fn push_text(&mut self, width: usize) -> Result<()> {
        let text = self.text(width)?;
        self.values.push(Node::Text(text))
    }

    fn push_bytes(&mut self, width: usize) -> Result<()> {
        self.sized(width)?;
        self.values.push_id(OTHER)
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
        self.values.push(Node::Global(callable))
    }

    fn call(&mut self) -> Result<()> {
        let arguments = self.values.pop()?;
        let callee = self.values.pop()?;
        let (Node::Global(callable), Node::Tuple(args)) = (self.values.node(callee), self.values.node(arguments))
        else {
            return Err(malformed("the pickle calls what is not a function"));
        };
        let node = match callable {
            Callable::OrderedDict if args.is_empty() => Node::Dict(Vec::new()),
            Callable::RebuildTensor => Node::Tensor(arguments),
            Callable::RebuildParameter => match args.first().map(|&id| self.values.node(id)) {
                Some(Node::Tensor(tensor)) => Node::Tensor(*tensor),
                _ => return Err(malformed("a parameter without its tensor")),
            },
            _ => return Err(malformed("the pickle calls a type with unexpected arguments")),
        };
        self.values.push(node)
    }
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
