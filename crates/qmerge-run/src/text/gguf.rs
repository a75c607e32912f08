//! A GGUF file's tokenizer against that of the folder which it was made of.

use qmerge::open::Checkpoint;

use super::Tokenizer;

const TEXTS: &[&str] = &[
    "Hello, world!",
    " The quick  brown fox\tjumps over 12345 lazy dogs.\n\n\nIt's what we're told; they'll've gone. ",
    "def f(x):\n    return x ** 2  # squares\n",
    "Größe, naïve café, Ελληνικά, русский текст, 中文文本, 日本語テキスト, 한국어, हिन्दी, עברית",
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈, maths ∑∫√≠, \u{200b}zero width, \u{feff}mark",
    "<bos>special</s> tokens <|im_start|>user\nhi<|im_end|>\n",
    "   leading and trailing   ",
    "",
    "a",
    "\r\nwindows\r\nlines\r\n",
    "1 22 333 4444 55555 3.14159e-10 0xdeadbeef",
    "ALLCAPS camelCase snake_case kebab-case 'quoted' \"double\" (paren) [br] {cu}",
];

/// Against the `tokenizer.json` of the same model, which transformers made of the file without Qwen's composing of characters: `QMERGE_GGUF` names the file, `QMERGE_FOLDER` the folder.
#[test]
#[ignore = "needs a model in both forms"]
fn tokens_are_those_of_the_folder() {
    let place = |name: &str| std::path::PathBuf::from(std::env::var(name).unwrap());
    let (file, folder) = (Checkpoint::open(&place("QMERGE_GGUF")), Checkpoint::open(&place("QMERGE_FOLDER")));
    let (file, folder) = (file.unwrap(), folder.unwrap());
    let own = Tokenizer::of_gguf(file.gguf.as_deref().unwrap(), &file.path).unwrap();
    let other = Tokenizer::open(&[&*folder.store]).unwrap();
    for text in TEXTS {
        let (own_tokens, tokens) = (own.encode(text).unwrap(), other.encode(text).unwrap());
        assert_eq!(own_tokens, tokens, "{text:?}");
        assert_eq!(own.decode(&tokens).unwrap(), other.decode(&tokens).unwrap(), "{text:?}");
    }
    assert_eq!(own.begin(), other.begin());
    assert_eq!(own.stop().first(), other.stop().first());
}
