//! A tokenizer with its configuration: text and a chat become tokens, and tokens text.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use qmerge::error::Result;
use qmerge::open::Checkpoint;
use qmerge_run::text::{Message, Tokenizer};

fuzz_target!(|data: &[u8]| -> Corpus {
    let [tokenizer, config, text] = qmerge_fuzz::parts(data);
    let Ok(text) = std::str::from_utf8(text) else { return Corpus::Reject };
    let Some(Ok(inputs)) = qmerge_fuzz::inputs([b"{}", b"BF16 1x1 a.weight", b"", b""]) else { return Corpus::Reject };
    let folder = &inputs.base.path;
    std::fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    std::fs::write(folder.join("tokenizer_config.json"), config).unwrap();
    if let Err(error) = use_it(&inputs.base, text) {
        qmerge_fuzz::honest(&error);
    }
    Corpus::Keep
});

fn use_it(base: &Checkpoint, text: &str) -> Result<()> {
    let tokenizer = Tokenizer::open(&[&*base.store])?;
    let tokens = tokenizer.encode(text)?;
    tokenizer.decode(&tokens)?;
    tokenizer.encode_prompt(text)?;
    tokenizer.chat(&[Message::new("user", text)]).map(|_| ())
}
