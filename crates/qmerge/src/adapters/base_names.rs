//! Is this the base that the adapter was trained on? Told by names, since shapes of related models are equal.
//!
//! `base_model_name_or_path` is compared with what the base is called: its hub id, the `_name_or_path` of its configuration, its folder, its model
//! card. How a model is stored (`-bnb-4bit`, `-GGUF`), who uploaded it, upper and lower case say nothing. A folder's name is what its owner chose,
//! so it counts only where it reads as a model's: with its size in it.

use std::path::Path;

use super::Adapter;
use crate::open::{Checkpoint, HubId, Store};

/// Words that say how a model is stored, or who stored it.
const STORAGE: &[&str] = &[
    "meta",
    "unsloth",
    "bnb",
    "hf",
    "mlx",
    "gguf",
    "gptq",
    "awq",
    "exl2",
    "hqq",
    "quanto",
    "quantized",
    "quant",
    "dynamic",
    "4bit",
    "8bit",
    "3bit",
    "6bit",
    "bf16",
    "fp16",
    "f16",
    "fp32",
    "f32",
    "fp8",
    "int4",
    "int8",
    "nf4",
    "fp4",
    "w4a16",
    "w8a8",
    "w8a16",
    "g128",
    "g64",
    "base",
    "model",
    "safetensors",
    "dq",
];

/// Words that tell a model from the one it was tuned from.
const TUNED: &[&str] = &[
    "instruct",
    "chat",
    "it",
    "dpo",
    "sft",
    "rlhf",
    "orpo",
    "thinking",
    "reasoning",
    "coder",
    "code",
    "math",
    "vl",
    "vision",
    "guard",
    "embedding",
    "reranker",
    "distill",
    "abliterated",
    "uncensored",
    "hermes",
    "zephyr",
    "tulu",
];

/// Models that the hub keeps without an owner.
const WITHOUT_OWNER: &[&str] =
    &["gpt2", "distilgpt2", "bert", "distilbert", "roberta", "albert", "xlm", "t5", "opt", "bloom"];

/// A name that a model has, and whether it is one beyond doubt.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    text: String,
    /// A hub id; a folder's name otherwise.
    hub: bool,
}

/// What a base is called.
#[derive(Clone, Debug, Default)]
pub(crate) struct BaseNames {
    /// Of the very files: hub id, folder, card's title.
    own: Vec<Name>,
    /// Of what they were made from: `_name_or_path`, the card's `base_model`. For a quantized copy this is the model itself.
    from: Vec<Name>,
}

/// Gathers the names of a base. A card that cannot be read has none.
pub(crate) fn of_base(base: &Checkpoint) -> BaseNames {
    let folder = base.folder().canonicalize().unwrap_or_else(|_| base.folder().to_path_buf());
    let mut names = BaseNames::default();
    match HubId::of_snapshot(&folder).or_else(|| HubId::of_snapshot(base.folder())) {
        Some(id) => names.own.push(Name { text: id.to_string(), hub: true }),
        None => {
            names.own.extend(folder.file_name().map(|name| Name { text: name.to_string_lossy().into(), hub: false }))
        }
    }
    let config = base.config.as_ref().and_then(|config| config.json.get("_name_or_path"));
    names.from.extend(config.and_then(|name| name.as_str()).and_then(name));
    let card = card(&*base.store);
    let title = card.lines().find_map(|line| line.strip_prefix("# ")).map(|title| title.trim().replace(' ', "-"));
    names.own.extend(title.map(|text| Name { text, hub: false }));
    let front = card.strip_prefix("---").and_then(|rest| rest.split_once("\n---")).map_or("", |(front, _)| front);
    let mut lines = front.lines();
    while let Some(line) = lines.next() {
        let Some(value) = line.strip_prefix("base_model:") else { continue };
        // A list of one stands on the next line.
        let value =
            if value.trim().is_empty() { lines.next().unwrap_or("").trim().trim_start_matches("- ") } else { value };
        names.from.extend(name(value.trim().trim_matches(['"', '\''])));
    }
    names
}

/// The first 64 KiB of a model card.
fn card(store: &dyn Store) -> String {
    let read = || {
        let blob = store.open("README.md")?;
        let mut text = vec![0; blob.len().min(1 << 16) as usize];
        blob.read_at(0, &mut text).map(|()| text)
    };
    read().map_or(String::new(), |text| String::from_utf8_lossy(&text).into_owned())
}

/// The name in a hub id or a path; `None` if there is none.
fn name(text: &str) -> Option<Name> {
    let text = text.trim_end_matches(['/', '\\']);
    let last = text.rsplit(['/', '\\']).next().filter(|last| !last.is_empty() && !last.starts_with('.'))?;
    // A path into the hub's cache.
    if let Some(id) = HubId::of_snapshot(Path::new(text)) {
        return Some(Name { text: id.to_string(), hub: true });
    }
    let is_id = HubId::parse(text).is_some() && !text.contains('\\') && !Path::new(text).is_dir();
    let without_owner = WITHOUT_OWNER
        .iter()
        .any(|known| last == *known || last.strip_prefix(known).is_some_and(|rest| rest.starts_with('-')));
    let hub = is_id || without_owner && text == last;
    Some(Name { text: if hub { text.to_owned() } else { last.to_owned() }, hub })
}

/// The words of a name that tell models apart, in order.
fn words(name: &str) -> Vec<String> {
    let last = name.rsplit('/').next().unwrap_or(name).to_lowercase();
    let words = last.split(['-', '_', ' ', '@', ':']).filter(|word| !word.is_empty() && !STORAGE.contains(word));
    words.filter(|word| !is_ggml_type(word)).map(str::to_owned).collect()
}

/// `q4`, `q8_0`'s first part, `iq2`.
fn is_ggml_type(word: &str) -> bool {
    let digits = word.strip_prefix("iq").or_else(|| word.strip_prefix('q'));
    digits.is_some_and(|digits| digits.len() == 1 && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `7b`, `0.5b`, `135m`, `8x7b`, `e2b`.
fn is_size(word: &str) -> bool {
    let Some(number) = word.strip_suffix(['b', 'm']) else { return false };
    let number = number.strip_prefix(['e', 'a']).unwrap_or(number);
    number.bytes().any(|byte| byte.is_ascii_digit())
        && number.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'x'))
}

fn is_known(name: &Name) -> bool {
    name.hub || words(&name.text).iter().any(|word| is_size(word))
}

/// True if two names can be of one model.
fn same(a: &Name, b: &Name) -> bool {
    let (a_words, b_words) = (words(&a.text), words(&b.text));
    // "Llama-3" and "llama3", "v0.1" and "v01".
    let joined = |words: &[String]| words.concat().replace('.', "");
    if joined(&a_words) == joined(&b_words) {
        return true;
    }
    // What a folder's owner left out of its name, or put into it, is no other model, unless it says so.
    let apart = |word: &String| TUNED.contains(&word.as_str()) || is_size(word);
    let only = |these: &[String], those: &[String]| these.iter().filter(|word| !those.contains(word)).any(apart);
    let shares_family = a_words.first() == b_words.first();
    let differs = only(&a_words, &b_words) || only(&b_words, &a_words);
    shares_family && !differs && !(a.hub && b.hub)
}

/// A warning if the adapter names another base than this one.
pub(crate) fn warning(adapter: &Adapter, base: &BaseNames) -> Option<String> {
    let trained_on = name(adapter.config.base_model.as_deref()?)?;
    let other = other_model(&trained_on, base)?;
    Some(format!(
        "{}: it was trained on `{}`, and the base is `{}`: if these are two models, the merge is of no use",
        adapter.path.display(),
        adapter.config.base_model.as_deref().unwrap_or_default(),
        other.text
    ))
}

/// The base's name, if it is known and another model's.
fn other_model<'n>(trained_on: &Name, base: &'n BaseNames) -> Option<&'n Name> {
    if !is_known(trained_on) {
        return None;
    }
    let known = |names: &'n [Name]| names.iter().filter(|name| is_known(name));
    if known(&base.own).any(|own| same(trained_on, own)) {
        return None;
    }
    let tuned =
        |name: &Name| words(&name.text).into_iter().filter(|word| TUNED.contains(&word.as_str())).collect::<Vec<_>>();
    let came_from_it = known(&base.from).any(|from| same(trained_on, from));
    match known(&base.own).next() {
        // A copy of it under a name of its own, unless the name says that it was tuned.
        Some(own) if came_from_it => (tuned(own) != tuned(trained_on)).then_some(own),
        Some(own) => Some(own),
        None if came_from_it => None,
        None => known(&base.from).next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(own: &[&str], from: &[&str]) -> BaseNames {
        let names = |texts: &[&str]| texts.iter().filter_map(|text| name(text)).collect();
        BaseNames { own: names(own), from: names(from) }
    }

    fn warns(trained_on: &str, own: &[&str], from: &[&str]) -> bool {
        name(trained_on).is_some_and(|trained_on| other_model(&trained_on, &base(own, from)).is_some())
    }

    #[test]
    fn another_model_is_told() {
        for (trained_on, own, from) in [
            ("meta-llama/Llama-3.2-1B", &["Llama-3.2-1B-Instruct"][..], &[][..]),
            ("meta-llama/Llama-3.2-1B-Instruct", &["Llama-3.2-1B"], &[]),
            ("meta-llama/Llama-3.2-1B", &["meta-llama/Llama-3.2-1B-Instruct"], &["meta-llama/Llama-3.2-1B"]),
            ("meta-llama/Llama-3.2-1B", &["smollm2-135m"], &[]),
            ("meta-llama/Llama-3.2-1B", &["base"], &["HuggingFaceTB/SmolLM2-135M"]),
            ("/data/models/Qwen2.5-7B-Instruct", &["Qwen2.5-7B"], &[]),
            ("mistralai/Mistral-7B-v0.1", &["mistralai/Mistral-7B-v0.3"], &[]),
            ("gpt2-medium", &["base"], &["gpt2"]),
            ("google/gemma-3-270m", &["google/gemma-3-270m-it"], &[]),
            ("Qwen/Qwen2.5-7B", &["Qwen2.5-Coder-7B"], &[]),
        ] {
            assert!(warns(trained_on, own, from), "{trained_on} {own:?} {from:?}");
        }
    }

    #[test]
    fn one_model_under_two_names_is_not_another() {
        for (trained_on, own, from) in [
            ("unsloth/Llama-3.2-1B-bnb-4bit", &["meta-llama/Llama-3.2-1B"][..], &[][..]),
            ("unsloth/llama-3.2-1b-unsloth-bnb-4bit", &["Llama-3.2-1B"], &[]),
            ("meta-llama/Meta-Llama-3.1-8B-Instruct", &["meta-llama/Llama-3.1-8B-Instruct"], &[]),
            ("meta-llama/Llama-3.2-1B", &["bartowski/Llama-3.2-1B-GGUF"], &[]),
            ("meta-llama/Llama-3.2-1B", &["mlx-community/Llama-3.2-1B-4bit"], &[]),
            ("HuggingFaceTB/SmolLM2-135M", &["SmolLM2-135M-bf16"], &[]),
            ("HuggingFaceTB/SmolLM2-135M", &["SmolLM2-135M-nf4"], &[]),
            ("mistralai/Mistral-7B-v0.1", &["mistral-7b"], &[]),
            ("meta-llama/Llama-3.2-1B", &["llama-3.2-1b-mine"], &[]),
            ("/home/x/checkpoints/best", &["meta-llama/Llama-3.2-1B"], &[]),
            ("meta-llama/Llama-3.2-1B", &["base"], &[]),
            ("meta-llama/Llama-3.2-1B", &["checkpoint-500"], &["./out"]),
            ("meta-llama/Llama-3.2-1B", &["base"], &["/data/Llama-3.2-1B"]),
            ("meta-llama/Llama-3.2-1B", &["someone/quantized-thing-1b"], &["meta-llama/Llama-3.2-1B"]),
            ("", &["meta-llama/Llama-3.2-1B"], &[]),
            ("./", &["meta-llama/Llama-3.2-1B"], &[]),
            ("random", &["meta-llama/Llama-3.2-1B"], &[]),
            ("Qwen/Qwen2.5-0.5B", &["/models/Qwen2.5-0.5B"], &[]),
        ] {
            assert!(!warns(trained_on, own, from), "{trained_on} {own:?} {from:?}");
        }
    }
}
