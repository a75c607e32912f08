//! Files beside a model's weights, by their names: what is read of them, copied, or asked a server for.

/// Files of a tokenizer, as transformers writes them.
pub const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
];

/// Files that say how quantized weights are stored, beside what config.json says.
pub const QUANTIZATION_FILES: &[&str] =
    &["quantize_config.json", "quant_config.json", "quanto_qmap.json", "hf_quant_config.json"];

/// Endings of the small files that belong to a model.
pub const SMALL_ENDINGS: &[&str] = &[".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"];
