//! The values that a pickle makes: an arena, a stack and a memo that refer to it by index.

use crate::dtype::Dtype;
use crate::error::{Result, malformed};

/// Place of a value in the arena.
pub(super) type Id = u32;

pub(super) enum Node<'a> {
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
pub(super) enum Callable {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

/// Values that need no place of their own: what nothing looks at, the empty tuple, and the numbers of one byte.
pub(super) const OTHER: Id = 0;
pub(super) const EMPTY: Id = 1;
pub(super) const FIRST_BYTE: Id = 2;
pub(super) const SHARED: Id = FIRST_BYTE + 256;

/// On the stack: where a list or a tuple begins.
pub(super) const MARK: Id = Id::MAX;

/// How much of each kind a pickle of some length may hold. `torch.save` spends 65 bytes and more on a tensor, for ten values, some
/// twenty places on the stack and a dozen in the memo, so real files stay far below.
pub(super) struct Budget {
    /// Values in the arena, and places on the stack.
    values: usize,
    /// Indices of the memo.
    memo: usize,
    /// Fields and dimensions of the tensors that come out.
    pub(super) fields: usize,
}

impl Budget {
    pub(super) fn of(bytes: usize) -> Self {
        /// A few values more, for pickles of a handful of bytes.
        const FREE: usize = 64;
        let part = |share: usize| bytes.checked_div(share).unwrap_or(0).saturating_add(FREE);
        Self { values: part(4), memo: part(2), fields: part(4) }
    }
}

pub(super) fn too_much() -> crate::error::Error {
    malformed("the pickle makes far more values than a state dict of its length has")
        .with_hint("do not trust this file; save the adapter as safetensors")
}

pub(super) struct Values<'a> {
    pub(super) budget: Budget,
    nodes: Vec<Node<'a>>,
    pub(super) stack: Vec<Id>,
    /// By index; [`MARK`] where nothing was stored.
    pub(super) memo: Vec<Id>,
    /// Members of all tuples, lists and dicts.
    items: usize,
}

impl<'a> Values<'a> {
    pub(super) fn new(budget: Budget) -> Self {
        let mut nodes = vec![Node::Other, Node::Tuple(Box::default())];
        nodes.extend((0..256).map(Node::Int));
        Self { budget, nodes, stack: Vec::new(), memo: Vec::new(), items: 0 }
    }

    pub(super) fn node(&self, id: Id) -> &Node<'a> {
        self.nodes.get(id as usize).unwrap_or(&Node::Other)
    }

    pub(super) fn push(&mut self, node: Node<'a>) -> Result<()> {
        if self.nodes.len() >= self.budget.values.saturating_add(SHARED as usize) {
            return Err(too_much());
        }
        let id = Id::try_from(self.nodes.len()).map_err(|_| too_much())?;
        self.nodes.push(node);
        self.push_id(id)
    }

    pub(super) fn push_id(&mut self, id: Id) -> Result<()> {
        if self.stack.len() >= self.budget.values {
            return Err(too_much());
        }
        self.stack.push(id);
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Result<Id> {
        let id = self.stack.pop().filter(|&id| id != MARK);
        id.ok_or_else(|| malformed("the pickle takes a value from an empty stack"))
    }

    pub(super) fn top(&self) -> Result<Id> {
        let id = self.stack.last().copied().filter(|&id| id != MARK);
        id.ok_or_else(|| malformed("the pickle's stack is empty"))
    }

    /// What stands above the last mark, which goes too.
    pub(super) fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.stack.iter().rposition(|&id| id == MARK);
        let mark = mark.ok_or_else(|| malformed("the pickle closes a list that was not opened"))?;
        let items = self.stack.get(mark..).unwrap_or_default().iter().skip(1).copied().collect();
        self.stack.truncate(mark);
        Ok(items)
    }

    pub(super) fn push_tuple(&mut self, items: Vec<Id>) -> Result<()> {
        self.count(items.len())?;
        self.push(Node::Tuple(items.into_boxed_slice()))
    }

    pub(super) fn pop_tuple(&mut self, n: usize) -> Result<()> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
        items.reverse();
        self.push_tuple(items)
    }

    /// Members of a collection: each stood on the stack, which took a byte at least.
    pub(super) fn count(&mut self, members: usize) -> Result<()> {
        self.items = self.items.saturating_add(members);
        if self.items > self.budget.memo { Err(too_much()) } else { Ok(()) }
    }

    pub(super) fn recall(&mut self, key: u64) -> Result<()> {
        let id = usize::try_from(key).ok().and_then(|key| self.memo.get(key)).copied().filter(|&id| id != MARK);
        self.push_id(id.ok_or_else(|| malformed("the pickle refers to a value it never stored"))?)
    }

    pub(super) fn remember(&mut self, key: u64) -> Result<()> {
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

    pub(super) fn extend(&mut self, items: &[Id]) -> Result<()> {
        self.count(items.len())?;
        let list = self.top()?;
        match self.nodes.get_mut(list as usize) {
            Some(Node::List(have)) => have.extend(items),
            _ => return Err(malformed("the pickle appends to what is not a list")),
        }
        Ok(())
    }

    pub(super) fn insert(&mut self, items: &[Id]) -> Result<()> {
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
}
