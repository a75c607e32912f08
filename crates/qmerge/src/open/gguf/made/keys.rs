//! The keys of a GGUF file that is made, in their order.

use crate::open::gguf::Metadata;
use crate::open::gguf::metadata::{ARRAY, BOOL, STRING, U32};

const I32: u32 = 5;
const F32: u32 = 6;

/// A value, in the type that llama.cpp's converter writes it in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Field {
    Count(u32),
    Signed(i32),
    Float(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Numbers(Vec<i32>),
    Flags(Vec<bool>),
}

/// Keys with their values.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Keys(Vec<(String, Field)>);

impl Keys {
    /// Sets a key. One that is there already keeps its place, as in gguf-py.
    pub(crate) fn set(&mut self, key: impl Into<String>, field: Field) {
        let key = key.into();
        match self.0.iter_mut().find(|(known, _)| *known == key) {
            Some((_, own)) => *own = field,
            None => self.0.push((key, field)),
        }
    }

    /// Sets a key, behind all others.
    pub(crate) fn set_last(&mut self, key: &str, field: Field) {
        self.0.retain(|(known, _)| known != key);
        self.0.push((key.to_owned(), field));
    }

    /// A text that was set.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0.iter().find_map(|(known, field)| match field {
            Field::Text(text) if known == key => Some(text.as_str()),
            _ => None,
        })
    }

    pub(crate) fn append(&mut self, more: Self) {
        more.0.into_iter().for_each(|(key, field)| self.set(key, field));
    }

    /// Behind all others, as llama-quantize does.
    pub(crate) fn append_last(&mut self, more: Self) {
        more.0.into_iter().for_each(|(key, field)| self.set_last(&key, field));
    }

    /// As they stand in a file.
    pub(crate) fn finish(self) -> Metadata {
        self.behind(&Metadata::default(), &[])
    }

    /// Behind the keys of another file, which keep their places and bytes but for those that are set here and those that are left out.
    pub(crate) fn behind(self, others: &Metadata, left_out: &[&str]) -> Metadata {
        let is_kept = |key: &str| !left_out.contains(&key) && !self.0.iter().any(|(own, _)| own == key);
        let mut metadata = others.only(is_kept);
        for (key, field) in self.0 {
            let (kind, items, bytes) = encoded(&field);
            metadata.push(&key, kind, items, &bytes);
        }
        metadata
    }
}

/// Type, that of items and their number, and bytes.
fn encoded(field: &Field) -> (u32, Option<(u32, u64)>, Vec<u8>) {
    fn text(text: &str) -> impl Iterator<Item = u8> {
        (text.len() as u64).to_le_bytes().into_iter().chain(text.bytes())
    }
    let list = |kind: u32, len: usize, bytes: Vec<u8>| (ARRAY, Some((kind, len as u64)), bytes);
    match field {
        Field::Count(number) => (U32, None, number.to_le_bytes().to_vec()),
        Field::Signed(number) => (I32, None, number.to_le_bytes().to_vec()),
        Field::Float(number) => (F32, None, number.to_le_bytes().to_vec()),
        Field::Flag(flag) => (BOOL, None, vec![u8::from(*flag)]),
        Field::Text(own) => (STRING, None, text(own).collect()),
        Field::Texts(all) => list(STRING, all.len(), all.iter().flat_map(|own| text(own)).collect()),
        Field::Floats(all) => list(F32, all.len(), all.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Field::Flags(all) => list(BOOL, all.len(), all.iter().map(|own| u8::from(*own)).collect()),
        Field::Numbers(all) => list(I32, all.len(), all.iter().flat_map(|x| x.to_le_bytes()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::gguf::Value;

    #[test]
    fn keys_of_another_file_keep_their_bytes() {
        let mut keys = Keys::default();
        keys.set("a", Field::Count(1));
        keys.set("b", Field::Texts(vec!["x".into(), "yz".into()]));
        keys.set("c", Field::Floats(vec![0.5]));
        keys.set("d", Field::Flag(true));
        let mut more = Keys::default();
        more.set("a", Field::Count(7));
        let metadata = more.behind(&keys.clone().finish(), &["c", "x"]);
        let mut want = Keys::default();
        want.set("b", Field::Texts(vec!["x".into(), "yz".into()]));
        want.set("d", Field::Flag(true));
        want.set("a", Field::Count(7));
        let want = want.finish();
        assert_eq!((metadata.bytes(), metadata.count()), (want.bytes(), 3));
        assert_eq!(Keys::default().behind(&keys.clone().finish(), &[]).bytes(), keys.finish().bytes());
    }

    #[test]
    fn what_is_set_is_read() {
        let mut keys = Keys::default();
        keys.set("a", Field::Count(1));
        keys.set("b", Field::Texts(vec!["x".into(), "yz".into()]));
        keys.set("c", Field::Floats(vec![0.5, -1.0]));
        keys.set("d", Field::Flag(true));
        keys.set("a", Field::Count(2));
        keys.set_last("d", Field::Text("e".into()));
        let metadata = keys.finish();
        assert_eq!((metadata.integer("a"), metadata.text("d"), metadata.count()), (Some(2), Some("e"), 4));
        let texts: Vec<_> = metadata.list("b").unwrap().iter().collect();
        assert_eq!(texts, [Value::Text("x"), Value::Text("yz")]);
        assert_eq!(metadata.list("c").unwrap().iter().last(), Some(Value::Float(-1.0)));
    }
}
