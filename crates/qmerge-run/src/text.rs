//! Text to tokens and back, and the chat template.

mod decoded;
#[cfg(test)]
mod gguf;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, context};
use qmerge::error::{Error, Kind, Result};
use qmerge::open::{Checkpoint, MAX_CONFIG, MAX_TOKENIZER, Metadata, Store, TokenizerKeys, json, read_tokenizer};
use qmerge::plan::Inputs;
use serde_json::Value;

pub use decoded::Written;

/// Steps that a chat template may take: published ones take thousands, an endless one ends.
const FUEL: u64 = 1_000_000;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes in memory for one of a tokenizer's file: Gemma 3's takes 97 MB for 33.
const OF_TOKENIZER: u64 = 3;

/// How the sequences that a model is used on begin.
#[derive(Clone, Debug, Default)]
pub struct Beginnings {
    /// A text: BOS, where the tokenizer adds it.
    pub document: Vec<u32>,
    /// A chat, up to where the user's message starts; empty where there is no template.
    pub chat: Vec<u32>,
}

/// Longest beginning of a chat that sequences are begun with.
const LONGEST_CHAT: usize = 128;

impl Beginnings {
    /// How a sequence begins that a model writes itself. Where sequences begin with BOS the model writes on from there: what follows is what it was trained on,
    /// and no first token of ours comes between. Elsewhere it starts from `any` token. Every second one is a chat, where there are chats.
    pub(crate) fn of(&self, number: usize, any: u32) -> Vec<u32> {
        match (&self.chat[..], &self.document[..]) {
            (chat @ [_, ..], _) if number % 2 == 1 => chat.to_vec(),
            (_, []) => vec![any],
            (_, document) => document.to_vec(),
        }
    }

    /// Leaves out what a model of so many tokens does not know.
    pub fn known(mut self, vocab: usize) -> Self {
        for tokens in [&mut self.document, &mut self.chat] {
            if tokens.iter().any(|&token| token as usize >= vocab) {
                tokens.clear();
            }
        }
        self
    }
}

/// What somebody says in a chat.
#[derive(Clone, Debug)]
pub struct Message {
    /// Who, in the words of chat templates: `system`, `user` or `assistant`.
    pub role: &'static str,
    /// What.
    pub content: String,
}

impl Message {
    /// What one of them says.
    pub fn new(role: &'static str, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// A model's tokenizer with what belongs to it.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    /// The chat template and the file it stands in.
    template: Option<(PathBuf, String)>,
    /// Texts of special tokens that templates may name (`bos_token` …).
    special: Vec<(&'static str, String)>,
    stop: Vec<u32>,
    begin: Vec<u32>,
}

impl Tokenizer {
    /// That of a model with its adapters, whose tokenizers come before the base's. A GGUF file has its own.
    pub fn of(inputs: &Inputs) -> Result<Self> {
        let beside: Vec<&dyn Store> = inputs.adapters.iter().filter_map(|adapter| adapter.beside()).collect();
        match &inputs.base.gguf {
            Some(metadata) if !beside.iter().any(|folder| has_tokenizer(*folder)) => {
                Self::of_gguf(metadata, &inputs.base.path)
            }
            Some(_) => Self::open(&beside),
            None => Self::open(&[&beside[..], &[&*inputs.base.store]].concat()),
        }
    }

    /// True if a model with its adapters has one.
    pub fn is_there(inputs: &Inputs) -> bool {
        let stores = inputs.adapters.iter().filter_map(|adapter| adapter.beside());
        has_own(&inputs.base) || stores.into_iter().any(has_tokenizer)
    }

    /// About the bytes that reading it takes, which stay with the program.
    pub fn memory(inputs: &Inputs) -> u64 {
        let beside = inputs.adapters.iter().filter_map(|adapter| adapter.beside());
        let folder = beside.chain([&*inputs.base.store as &dyn Store]).find(|folder| has_tokenizer(*folder));
        let file = folder.and_then(|folder| folder.open("tokenizer.json").ok());
        file.map_or(0, |file| OF_TOKENIZER * file.len())
    }

    /// What the keys of a GGUF file say.
    fn of_gguf(metadata: &Metadata, path: &Path) -> Result<Self> {
        let TokenizerKeys { tokenizer, begin, stop, special, template } =
            read_tokenizer(metadata).map_err(|error| error.in_file(path))?;
        let inner = guarded(|| serde_json::from_value(tokenizer)).map_err(|error| {
            Error::new(Kind::Malformed, format!("its keys describe no tokenizer: {error}"))
                .in_file(path)
                .with_hint("take another GGUF file of the model")
        })?;
        let template = template.map(|template| (path.to_path_buf(), template));
        Ok(Self { path: path.to_path_buf(), inner, template, special, stop, begin })
    }

    /// Opens `tokenizer.json` and its companions in the first of the folders that has one; the last is the model's.
    pub fn open(folders: &[&dyn Store]) -> Result<Self> {
        let Some(folder) = folders.iter().copied().find(|folder| folder.has("tokenizer.json")) else {
            let place = folders.last().map_or(Path::new("."), |folder| folder.path());
            return Err(Error::new(Kind::Mismatch, "no tokenizer.json in the model's folder")
                .in_file(place)
                .with_hint("copy it from where the model was published; older formats must be converted first"));
        };
        let path = folder.path_of("tokenizer.json");
        let inner = folder.small("tokenizer.json", MAX_TOKENIZER)?.unwrap_or_default();
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(inner))
            .map_err(|error| broken(&path, format!("not a tokenizer: {error}")))?;
        // As long as a text is: training cuts and fills up its examples, and may have saved that with it.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| broken(&path, format!("not a tokenizer: {error}")))?;
        let json = |name: &str| -> Result<Option<Value>> {
            let parsed = text_of(folder, name)?.map(|text| json::parse(&text));
            parsed.transpose().map_err(|error| broken(&folder.path_of(name), format!("not JSON: {error}")))
        };
        let config = json("tokenizer_config.json")?.unwrap_or_default();
        let content = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
        let special = ["bos_token", "eos_token", "pad_token", "unk_token"];
        let special = special.iter().filter_map(|&key| Some((key, content(config.get(key)?)?))).collect::<Vec<_>>();
        let mut stop: Vec<u32> = [json("generation_config.json")?, json("config.json")?]
            .iter()
            .flatten()
            .filter_map(|config| config.get("eos_token_id"))
            .flat_map(|ids| ids.as_array().cloned().unwrap_or_else(|| vec![ids.clone()]))
            .filter_map(|id| u32::try_from(id.as_u64()?).ok())
            .collect();
        let named = special.iter().filter(|(key, _)| *key == "eos_token");
        stop.extend(named.filter_map(|(_, text)| inner.token_to_id(text)));
        const TEMPLATE: &str = "chat_template.jinja";
        let template = match text_of(folder, TEMPLATE)? {
            Some(text) => Some((folder.path_of(TEMPLATE), text)),
            None => config
                .get("chat_template")
                .and_then(default_template)
                .map(|text| (folder.path_of("tokenizer_config.json"), text)),
        };
        let begin = match config.get("add_bos_token").and_then(Value::as_bool) {
            // Says it for a tokenizer whose own rules do not.
            Some(true) => {
                let bos = special.iter().find(|(key, _)| *key == "bos_token");
                bos.and_then(|(_, text)| inner.token_to_id(text)).into_iter().collect()
            }
            Some(false) => Vec::new(),
            None => put_before(&inner),
        };
        Ok(Self { path, inner, template, special, stop, begin })
    }

    /// Tokens that every text begins with (BOS); empty where the tokenizer adds none.
    pub fn begin(&self) -> &[u32] {
        &self.begin
    }

    /// How sequences begin; `with_chats` renders the chat template too, if there is one.
    pub fn beginnings(&self, with_chats: bool) -> Beginnings {
        const MESSAGE: &str = "Hello";
        // A template that fails is one that nobody was trained with.
        let frame = self.template.as_ref().filter(|_| with_chats).and_then(|_| {
            let rendered = self.render(&[Message::new("user", MESSAGE)]).ok()?;
            let (before, _) = rendered.rsplit_once(MESSAGE)?;
            self.encode(before).ok()
        });
        let chat = frame.filter(|frame| frame.len() <= LONGEST_CHAT).unwrap_or_default();
        Beginnings { document: self.begin.clone(), chat }
    }

    /// Tokens of a text, without any that the tokenizer would put around it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, false))
            .map_err(|error| Error::new(Kind::Mismatch, format!("cannot encode: {error}")).in_file(&self.path))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Tokens of a prompt: with those that every text begins with.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = self.begin.clone();
        tokens.append(&mut self.encode(text)?);
        Ok(tokens)
    }

    /// That a text has no tokens, though it is not empty.
    pub fn knows_nothing(&self) -> Error {
        let problem = format!("it makes no tokens of the prompt, and knows {}", self.inner.get_vocab_size(true));
        Error::new(Kind::Mismatch, problem).in_file(&self.path).with_hint(
            "its vocabulary was emptied, or lacks what the prompt is made of: copy the tokenizer again from where the model was published",
        )
    }

    /// Errors if one of the tokens is not among the `known` ones of a model.
    pub fn check(&self, tokens: &[u32], known: usize) -> Result<()> {
        let Some(token) = tokens.iter().find(|&&token| token as usize >= known) else { return Ok(()) };
        Err(Error::new(Kind::Mismatch, format!("token id {token}, but the model knows {known}"))
            .in_file(&self.path)
            .with_hint("the tokenizer belongs to another model; copy tokenizer.json from where this one was published"))
    }

    /// Tokens that end an answer.
    pub fn stop(&self) -> &[u32] {
        &self.stop
    }

    /// Messages as the model's chat template writes them, up to where the next answer begins.
    pub fn chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.encode(&self.render(messages)?)
    }

    fn render(&self, messages: &[Message]) -> Result<String> {
        let hint = match messages.iter().any(|message| message.role == "system") {
            true => {
                "leave out --system, which some templates have no place for, or leave out --chat and write the prompt yourself"
            }
            false => "leave out --chat and write the prompt yourself",
        };
        let bad = |path: &Path, problem: String| Error::new(Kind::Mismatch, problem).in_file(path).with_hint(hint);
        let Some((path, template)) = &self.template else {
            return Err(bad(&self.path, "the model has no chat template beside it".into()));
        };
        let (send, rendered) = mpsc::channel();
        let (template, special, messages) = (template.clone(), self.special.clone(), messages.to_vec());
        // A step may take long, so that the time is bounded too.
        let render = move || send.send(rendered_by(&template, &special, &messages));
        std::thread::Builder::new().spawn(render).map_err(|error| bad(path, format!("no thread for it: {error}")))?;
        match rendered.recv_timeout(PATIENCE) {
            Ok(rendered) => rendered.map_err(|error| bad(path, format!("the chat template fails: {error}"))),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(bad(path, format!("the chat template has not ended after {} s", PATIENCE.as_secs())))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(bad(path, "the chat template cannot be followed".into())),
        }
    }
}

/// Messages as a template writes them.
fn rendered_by(
    template: &str,
    special: &[(&'static str, String)],
    messages: &[Message],
) -> std::result::Result<String, minijinja::Error> {
    // Marks for training that jinja does not know.
    let template = template.replace("{% generation %}", "").replace("{% endgeneration %}", "");
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(|state, value, method, args| {
        // Fuel does not bound how wide `str.format` makes a value.
        let has_width = |text: &str| {
            text.split('{').skip(1).any(|rest| rest.split('}').next().is_some_and(|spec| spec.contains(':')))
        };
        if method == "format" && value.as_str().is_some_and(has_width) {
            let problem = "it calls `format` with a width or the like, which this version does not follow";
            return Err(minijinja::Error::new(minijinja::ErrorKind::UnknownMethod, problem));
        }
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    });
    environment.add_function("raise_exception", |message: String| -> std::result::Result<String, minijinja::Error> {
        Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
    });
    // A fixed date keeps the same prompt the same prompt.
    environment.add_function("strftime_now", |_: String| "01 Jan 2025".to_owned());
    let special = minijinja::Value::from_pairs(special.iter().map(|(key, text)| (*key, text.clone())));
    let message = |said: &Message| context! { role => said.role, content => said.content.clone() };
    let messages: Vec<_> = messages.iter().map(message).collect();
    let values = context! { messages, add_generation_prompt => true, tools => (), ..special };
    environment.template_from_str(&template).and_then(|template| template.render(values))
}

fn has_tokenizer(folder: &dyn Store) -> bool {
    folder.has("tokenizer.json")
}

/// True if the base itself has a tokenizer.
fn has_own(base: &Checkpoint) -> bool {
    match &base.gguf {
        Some(metadata) => metadata.list("tokenizer.ggml.tokens").is_some(),
        None => has_tokenizer(&*base.store),
    }
}

/// What a tokenizer's own rules put before a text.
fn put_before(tokenizer: &tokenizers::Tokenizer) -> Vec<u32> {
    const TEXT: &str = "a";
    let encode = |special| guarded(|| tokenizer.encode_fast(TEXT, special));
    let (Ok(alone), Ok(with)) = (encode(false), encode(true)) else { return Vec::new() };
    let (alone, with) = (alone.get_ids(), with.get_ids());
    let at = with.windows(alone.len().max(1)).position(|window| window == alone);
    with[..at.unwrap_or(0)].to_vec()
}

/// What the library of tokenizers makes of a file; it panics at some that contradict themselves, as one whose template names a token that is none.
fn guarded<T, E: std::fmt::Display>(
    call: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("it contradicts itself".to_owned()),
    }
}

fn broken(path: &Path, problem: String) -> Error {
    Error::new(Kind::Malformed, problem)
        .in_file(path)
        .with_hint("the file is damaged: copy it again from where the model was published")
}

/// The text of a file that need not exist.
fn text_of(folder: &dyn Store, name: &str) -> Result<Option<String>> {
    let text = folder.small(name, MAX_CONFIG)?.map(String::from_utf8).transpose();
    text.map_err(|_| broken(&folder.path_of(name), "not UTF-8".into()))
}

/// A template is a string, or a list of named ones.
fn default_template(value: &Value) -> Option<String> {
    let named = || {
        let list = value.as_array()?;
        let default = list.iter().find(|item| item["name"] == "default").or(list.first())?;
        default.get("template")?.as_str()
    };
    value.as_str().or_else(named).map(str::to_owned)
}
