//! Keys and values in front of a GGUF file's tensors: kept byte for byte, looked at by key.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use super::{BROKEN, Header};
use crate::error::{Error, Kind, Result, malformed};

/// Types of values.
pub(super) const U32: u32 = 4;
pub(super) const BOOL: u32 = 7;
pub(super) const STRING: u32 = 8;
pub(super) const ARRAY: u32 = 9;

/// Where a file does not say.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;

/// Bytes of a value of that type; `None` for those of no fixed length.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | BOOL => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// The keys of a GGUF file, in their order.
#[derive(Default)]
pub struct Metadata {
    /// All of them with their values, as they stand in the file.
    bytes: Vec<u8>,
    count: u64,
    keys: HashMap<String, Span>,
}

/// Where a value stands.
#[derive(Clone, Debug)]
struct Span {
    kind: u32,
    /// Of a list its items' type, and their number.
    items: Option<(u32, u64)>,
    /// Its bytes, of a list those of its items.
    range: Range<usize>,
}

impl fmt::Debug for Metadata {
    /// Vocabularies are long: their length stands for them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Metadata({} keys, {} bytes)", self.count, self.bytes.len())
    }
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'m> {
    /// Of any integer type.
    Integer(i128),
    /// Of either float type.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(&'m str),
    /// Values of one type.
    List(List<'m>),
}

/// Values of one type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct List<'m> {
    kind: u32,
    len: u64,
    bytes: &'m [u8],
}

/// Reads so many keys.
pub(super) fn read(header: &mut Header<'_>, count: u64) -> Result<Metadata> {
    let start = header.at;
    let mut keys = HashMap::new();
    for _ in 0..count {
        let key = header.string()?;
        if key.is_empty() {
            return Err(malformed(format!("a key without a name before byte {}", header.at)).with_hint(BROKEN));
        }
        let mut place = place(header).map_err(|error| in_key(&error, &key))?;
        place.range = place.range.start.saturating_sub(start)..place.range.end.saturating_sub(start);
        if keys.insert(key.clone(), place).is_some() {
            return Err(malformed(format!("the key `{key}` stands twice")).with_hint(BROKEN));
        }
    }
    let bytes = header.bytes.get(start..header.at).unwrap_or_default().to_vec();
    Ok(Metadata { bytes, count, keys })
}

/// Says in which key something is broken.
fn in_key(error: &Error, key: &str) -> Error {
    let told = Error::new(error.kind(), format!("the key `{key}`: {}", error.message()));
    match error.hint() {
        Some(hint) => told.with_hint(hint),
        None => told,
    }
}

fn place(header: &mut Header<'_>) -> Result<Span> {
    let kind = header.u32()?;
    let items = if kind == ARRAY { Some((header.u32()?, header.u64()?)) } else { None };
    let start = header.at;
    let (each, number) = items.unwrap_or((kind, 1));
    match width(each) {
        Some(width) => {
            let bytes = width.checked_mul(number);
            header.skip(bytes.ok_or_else(|| malformed(format!("a list of {number} values")).with_hint(BROKEN))?)?;
        }
        None if each == STRING => {
            header.refuse_count(number, 8, "texts in a list")?;
            for _ in 0..number {
                let length = header.u64()?;
                header.skip(length)?;
            }
        }
        None if each == ARRAY => return Err(malformed("a list of lists, which llama.cpp refuses")),
        None => return Err(malformed(format!("a value of type {each}, which is not known")).with_hint(BROKEN)),
    }
    Ok(Span { kind, items, range: start..header.at })
}

impl Metadata {
    /// Some counts, of type u32.
    #[cfg(test)]
    pub(crate) fn of_counts(counts: &[(&str, u32)]) -> Self {
        let place = |at: usize| Span { kind: U32, items: None, range: 4 * at..4 * at + 4 };
        Self {
            bytes: counts.iter().flat_map(|(_, count)| count.to_le_bytes()).collect(),
            count: counts.len() as u64,
            keys: counts.iter().enumerate().map(|(at, (key, _))| ((*key).to_owned(), place(at))).collect(),
        }
    }

    /// Puts a key behind the others: its type, that of a list's items and their number, and its bytes.
    pub(super) fn push(&mut self, key: &str, kind: u32, items: Option<(u32, u64)>, bytes: &[u8]) {
        self.bytes.extend((key.len() as u64).to_le_bytes());
        self.bytes.extend(key.as_bytes());
        self.bytes.extend(kind.to_le_bytes());
        if let Some((kind, len)) = items {
            self.bytes.extend(kind.to_le_bytes());
            self.bytes.extend(len.to_le_bytes());
        }
        let start = self.bytes.len();
        self.bytes.extend(bytes);
        self.keys.insert(key.to_owned(), Span { kind, items, range: start..self.bytes.len() });
        self.count = self.count.saturating_add(1);
    }

    /// Some of the keys, in their order.
    pub(super) fn only(&self, is_kept: impl Fn(&str) -> bool) -> Self {
        let mut kept: Vec<(&String, &Span)> = self.keys.iter().filter(|(key, _)| is_kept(key)).collect();
        kept.sort_by_key(|(_, place)| place.range.start);
        let mut only = Self::default();
        for (key, place) in kept {
            only.push(key, place.kind, place.items, self.bytes.get(place.range.clone()).unwrap_or_default());
        }
        only
    }

    /// All keys with their values, as they stand in the file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The names of all keys, in no order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// The number of keys.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The value of a key. A text that is not UTF-8 has none.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        let place = self.keys.get(key)?;
        let bytes = self.bytes.get(place.range.clone())?;
        match place.items {
            Some((kind, len)) => Some(Value::List(List { kind, len, bytes })),
            None => value(place.kind, bytes).map(|(value, _)| value),
        }
    }

    /// A text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A count.
    pub fn integer(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::Integer(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    /// An integer, of a list the one that all its items are.
    pub(crate) fn integer_of_all(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::List(list) => {
                let mut items = list.iter();
                let first = items.next()?;
                let Value::Integer(number) = first else { return None };
                if items.all(|item| item == first) { u64::try_from(number).ok() } else { None }
            }
            _ => self.integer(key),
        }
    }

    /// An integer, of a list the first.
    pub(crate) fn first_integer(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Value::List(list) => match list.iter().next()? {
                Value::Integer(number) => u64::try_from(number).ok(),
                _ => None,
            },
            _ => self.integer(key),
        }
    }

    /// A number, whole or not.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::Integer(number) => Some(number as f64),
            Value::Float(number) => Some(number),
            _ => None,
        }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(flag) => Some(flag),
            _ => None,
        }
    }

    /// A list.
    pub fn list(&self, key: &str) -> Option<List<'_>> {
        match self.get(key)? {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// `general.architecture`, "" where there is none.
    pub fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or("")
    }

    /// Tensors begin at multiples of so many bytes.
    pub(crate) fn alignment(&self) -> Result<u64> {
        const KEY: &str = "general.alignment";
        let Some(place) = self.keys.get(KEY) else { return Ok(DEFAULT_ALIGNMENT) };
        match self.integer(KEY) {
            Some(alignment) if alignment.is_power_of_two() && place.kind == U32 => Ok(alignment),
            _ => Err(Error::new(Kind::Malformed, format!("the key `{KEY}` is no power of two of type u32"))
                .with_hint(BROKEN)),
        }
    }
}

/// The value that some bytes begin with, and how many it takes.
fn value(kind: u32, bytes: &[u8]) -> Option<(Value<'_>, usize)> {
    fn number<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
        bytes.first_chunk().copied()
    }
    let value = match kind {
        0 => Value::Integer(u8::from_le_bytes(number(bytes)?).into()),
        1 => Value::Integer(i8::from_le_bytes(number(bytes)?).into()),
        2 => Value::Integer(u16::from_le_bytes(number(bytes)?).into()),
        3 => Value::Integer(i16::from_le_bytes(number(bytes)?).into()),
        U32 => Value::Integer(u32::from_le_bytes(number(bytes)?).into()),
        5 => Value::Integer(i32::from_le_bytes(number(bytes)?).into()),
        // As it is written, so that a tenth is 0.1 and not the f64 of its f32.
        6 => Value::Float(f32::from_le_bytes(number(bytes)?).to_string().parse().ok()?),
        BOOL => Value::Bool(bytes.first()? != &0),
        STRING => {
            let end = (u64::from_le_bytes(number(bytes)?) as usize).checked_add(8)?;
            return Some((Value::Text(std::str::from_utf8(bytes.get(8..end)?).ok()?), end));
        }
        10 => Value::Integer(u64::from_le_bytes(number(bytes)?).into()),
        11 => Value::Integer(i64::from_le_bytes(number(bytes)?).into()),
        12 => Value::Float(f64::from_le_bytes(number(bytes)?)),
        _ => return None,
    };
    Some((value, width(kind)? as usize))
}

impl<'m> List<'m> {
    /// The number of values.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True for none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values; it ends before a text that is not UTF-8.
    pub fn iter(self) -> impl Iterator<Item = Value<'m>> {
        let mut left = self.bytes;
        (0..self.len).map_while(move |_| {
            let (value, taken) = value(self.kind, left)?;
            left = left.get(taken..)?;
            Some(value)
        })
    }
}
