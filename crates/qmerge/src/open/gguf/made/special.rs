//! Which tokens a text begins and ends with, their numbers, and the chat template.
//!
//! This follows gguf-py's `SpecialVocab`: what `tokenizer.json` puts around a text, then what `tokenizer_config.json` names, then the numbers in `config.json`.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::document::Document;
use super::keys::{Field, Keys};

/// What stands beside a tokenizer.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// `tokenizer_config.json`.
    pub(super) config: Option<Map<String, Value>>,
    /// `chat_template.jinja`, or what `chat_template.json` says.
    pub(super) template: Option<Value>,
    /// `config.json`.
    pub(super) model: Map<String, Value>,
}

/// Kinds of tokens in the files, and what a GGUF file calls them.
const KINDS: &[(&str, &str)] = &[
    ("bos", "bos"),
    ("eos", "eos"),
    ("unk", "unknown"),
    ("sep", "seperator"),
    ("pad", "padding"),
    // Is looked for, and has no key.
    ("cls", ""),
    ("mask", "mask"),
    ("eot", "eot"),
    ("eom", "eom"),
];

/// Those that are looked for before it is known whether a text ends with another than EOS.
const USUAL: usize = 7;

/// What is found, in the order of gguf-py.
struct Special<'a> {
    config: Option<Map<String, Value>>,
    document: Option<&'a Document>,
    kinds: usize,
    adds: Vec<(&'static str, bool)>,
}

/// Adds the keys of special tokens and templates. Numbers from `most` on are no tokens; `named` are kinds of tokens that are known by their texts if nothing says which they are.
pub(super) fn add(
    keys: &mut Keys,
    beside: &Beside,
    document: Option<&Document>,
    most: Option<usize>,
    named: &[(&'static str, &str)],
) {
    let mut special = Special { config: beside.config.clone(), document, kinds: USUAL, adds: Vec::new() };
    special.look_around();
    let mut ids: Vec<(&str, u32)> = Vec::new();
    let mut set = |name: &'static str, id: Option<u32>| {
        let known = id.filter(|&id| most.is_none_or(|most| (id as usize) < most));
        if let Some(id) = known.filter(|_| !name.is_empty() && ids.iter().all(|(own, _)| *own != name)) {
            ids.push((name, id));
        }
    };
    let kinds = KINDS.get(..special.kinds).unwrap_or(KINDS);
    for (kind, name) in kinds.iter().filter(|_| special.config.is_some()) {
        let says = special.config.as_ref().and_then(|config| config.get(&format!("add_{kind}_token"))?.as_bool());
        if let Some(says) = says.filter(|_| special.adds.iter().all(|(own, _)| own != kind)) {
            special.adds.push((kind, says));
        }
        set(name, special.id(kind));
    }
    for (kind, name) in kinds {
        let id = |config: &Map<String, Value>| config.get(&format!("{kind}_token_id"))?.as_u64();
        let id = id(&beside.model).or_else(|| id(beside.model.get("text_config")?.as_object()?));
        set(name, id.and_then(|id| u32::try_from(id).ok()));
    }
    for (kind, text) in named {
        let token = document.and_then(|document| document.added_tokens.iter().find(|token| token.content == *text));
        set(kind, token.map(|token| token.id));
    }
    for (name, id) in ids {
        keys.set(format!("tokenizer.ggml.{name}_token_id"), Field::Count(id));
    }
    for (kind, says) in special.adds.into_iter().filter(|(kind, _)| matches!(*kind, "bos" | "eos" | "sep")) {
        keys.set(format!("tokenizer.ggml.add_{kind}_token"), Field::Flag(says));
    }
    if let Some(config) = &beside.config {
        template(keys, config.get("chat_template").filter(|own| !own.is_null()).or(beside.template.as_ref()));
    }
}

/// Texts of all tokens that `tokenizer_config.json` names.
pub(super) fn named(beside: &Beside) -> HashSet<String> {
    let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    let texts = |(key, value): (&String, &Value)| -> Vec<String> {
        match (key.as_str(), value) {
            ("extra_special_tokens" | "additional_special_tokens", Value::Array(all)) => {
                all.iter().filter_map(text).collect()
            }
            ("extra_special_tokens" | "model_specific_special_tokens", Value::Object(all)) => {
                all.values().filter_map(text).collect()
            }
            _ if key.ends_with("_token") => text(value).into_iter().collect(),
            _ => Vec::new(),
        }
    };
    beside.config.iter().flatten().flat_map(texts).collect()
}

impl Special<'_> {
    /// The text of a token that the configuration names.
    fn text(&self, kind: &str) -> Option<String> {
        let value = self.config.as_ref()?.get(&format!("{kind}_token"))?;
        value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
    }

    fn name(&mut self, kind: &str, text: Option<&str>) {
        if let (Some(config), Some(text)) = (&mut self.config, text) {
            config.insert(format!("{kind}_token"), text.into());
        }
    }

    fn id(&self, kind: &str) -> Option<u32> {
        let text = self.text(kind)?;
        self.document?.added_tokens.iter().find(|token| token.content == text).map(|token| token.id)
    }

    fn says(&mut self, kind: &'static str, value: bool) {
        match self.adds.iter_mut().find(|(own, _)| *own == kind) {
            Some((_, own)) => *own = value,
            None => self.adds.push((kind, value)),
        }
    }

    /// What a `tokenizer.json` puts around a text.
    fn look_around(&mut self) {
        let Some(document) = self.document else { return };
        for (kind, other) in [("bos", "cls"), ("eos", "sep")] {
            if self.text(kind).is_none_or(|text| text.is_empty()) {
                let text = self.text(other);
                self.name(kind, text.as_deref());
            }
        }
        let whole = &document.post_processor;
        let single = std::slice::from_ref(whole);
        for stage in whole.get("processors").and_then(Value::as_array).map_or(single, Vec::as_slice) {
            match stage.get("type").and_then(Value::as_str) {
                Some("ByteLevel") => {
                    for kind in ["bos", "eos"] {
                        if self.adds.iter().all(|(own, _)| *own != kind) {
                            self.says(kind, false);
                        }
                    }
                }
                Some("TemplateProcessing") => self.look_at_template(stage),
                _ => {}
            }
        }
    }

    fn look_at_template(&mut self, stage: &Value) {
        let list = |key: &str| stage.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let token = |part: &Value| Some(part.get("SpecialToken")?.get("id")?.as_str()?.to_owned());
        let (one, two) = (list("single"), list("pair"));
        let (mut first, mut last) = (None, None);
        let [own_bos, own_cls] = ["bos", "cls"].map(|kind| self.text(kind).filter(|text| !text.is_empty()));
        if one.len() > 1 {
            first = one.first().and_then(token);
            if let Some(first) = &first {
                let is_named = own_bos.as_ref() == Some(first) || own_cls.as_ref() == Some(first);
                // Takes the place of what has no name.
                let takes = !is_named && (own_bos.is_none() || own_cls.is_none());
                if takes && own_bos.is_none() {
                    self.name("bos", Some(first));
                }
                if takes && own_cls.is_none() {
                    self.name("cls", Some(first));
                }
                self.says("bos", is_named || takes);
            }
            last = one.last().and_then(token);
            if let Some(last) = &last {
                if let Some(own) = self.text("eos").filter(|own| own != last) {
                    // What ended a text so far ends a turn.
                    self.kinds = KINDS.len().min(USUAL.saturating_add(1));
                    self.name("eot", Some(&own));
                }
                self.name("eos", Some(last));
                self.says("eos", true);
            }
        }
        let is = |part: Option<&Value>, wanted: &Option<String>| wanted.is_some() && part.and_then(token) == *wanted;
        let start = usize::from(is(two.first(), &first));
        let end = two.len().saturating_sub(usize::from(is(two.last(), &last)));
        let two = two.get(start..end).unwrap_or_default();
        let sequence =
            |part: Option<&Value>| -> Option<String> { Some(part?.get("Sequence")?.get("id")?.as_str()?.to_owned()) };
        let middle = two.get(1..two.len().saturating_sub(1)).unwrap_or_default();
        if (sequence(two.first()).as_deref(), sequence(two.last()).as_deref()) == (Some("A"), Some("B"))
            && !middle.is_empty()
        {
            let [sep, eos] = ["sep", "eos"].map(|kind| self.text(kind));
            let ends = |part: Option<&Value>| is(part, &sep) || is(part, &eos);
            let adds = ends(middle.first()) && last.is_none() || middle.len() == 2 && ends(middle.get(1));
            self.says("sep", adds);
            if adds && sep.is_none() {
                self.name("sep", eos.as_deref());
            }
        }
    }
}

/// One template, or several by name.
fn template(keys: &mut Keys, template: Option<&Value>) {
    match template {
        Some(Value::String(text)) => keys.set("tokenizer.chat_template", Field::Text(text.clone())),
        Some(Value::Array(all)) => {
            let plain = |name: &str| -> String {
                name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
            };
            let named: Vec<(String, &str)> = all
                .iter()
                .filter_map(|one| Some((plain(one.get("name")?.as_str()?), one.get("template")?.as_str()?)))
                .filter(|(name, _)| !name.is_empty())
                .collect();
            let mut names: Vec<String> = Vec::new();
            for (name, text) in named.iter().filter(|(name, _)| name != "default") {
                keys.set(format!("tokenizer.chat_template.{name}"), Field::Text((*text).to_owned()));
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
            if !names.is_empty() {
                keys.set("tokenizer.chat_templates", Field::Texts(names));
            }
            if let Some((_, text)) = named.iter().rev().find(|(name, _)| name == "default") {
                keys.set("tokenizer.chat_template", Field::Text((*text).to_owned()));
            }
        }
        _ => {}
    }
}
