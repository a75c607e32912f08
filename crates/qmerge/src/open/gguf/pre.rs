//! How text is cut before pairs are merged: llama.cpp's names for it, and what a `tokenizer.json` says in their place.
//!
//! A GGUF file names the rule (`tokenizer.ggml.pre`), and llama.cpp has its regular expressions in code. Its converter knows a tokenizer again by a hash of the numbers that it gives
//! to a fixed text; here it is known by the expression in its `tokenizer.json`, which is what the name stands for. Names that llama.cpp treats alike are one rule; the first is the one that
//! is written. Sources: llama.cpp, `src/llama-vocab.cpp`.

use serde_json::Value;

/// A rule.
#[derive(Debug)]
pub(super) struct Pre {
    /// The names that files give to it; the first is written.
    pub(super) names: &'static [&'static str],
    /// Digits are cut one by one first.
    pub(super) digits: bool,
    /// What is cut off as one piece before the rest is looked at, one expression behind the other.
    pub(super) first: &'static [&'static str],
    /// What is cut off as one piece; `None` for GPT-2's own.
    pub(super) pattern: Option<&'static str>,
    /// Characters are composed first.
    pub(super) composes: bool,
    /// A piece that is a token is not put together from others.
    pub(super) takes_whole: bool,
    /// Texts begin with BOS where the file does not say.
    pub(super) begins: bool,
}

const GPT2: Pre = Pre {
    names: &[
        "gpt-2",
        "phi-2",
        "mpt",
        "olmo",
        "exaone4",
        "jais",
        "trillion",
        "granite-docling",
        "gigachat",
        "a.x-4.0",
        "mellum",
    ],
    digits: false,
    first: &[],
    pattern: None,
    composes: false,
    takes_whole: false,
    begins: false,
};

/// GPT-2's own expression, where a file spells it out.
const OF_GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Every number is a piece of its own.
const ONE_NUMBER: &str = r"\p{N}";

/// Up to three digits are one piece.
const THREE_DIGITS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Every digit is a piece.
const ONE_DIGIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What DeepSeek's first models cut off: ends of lines, words of letters that have a case, signs, spaces at the end, Chinese and Korean.
const OF_DEEPSEEK: &[&str] = &[
    r"[\r\n]",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    r"[一-龥ࠀ-一가-퟿]+",
];

/// All rules.
pub(super) const PRES: &[Pre] = &[
    GPT2,
    Pre {
        names: &["smollm", "refact", "starcoder", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        digits: true,
        ..GPT2
    },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        pattern: Some(THREE_DIGITS),
        takes_whole: true,
        begins: true,
        ..GPT2
    },
    Pre { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], pattern: Some(THREE_DIGITS), ..GPT2 },
    Pre { names: &["glm4", "glm5"], pattern: Some(THREE_DIGITS), takes_whole: true, ..GPT2 },
    Pre {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2"],
        pattern: Some(ONE_DIGIT),
        composes: true,
        ..GPT2
    },
    Pre { names: &["stablelm2", "hunyuan", "solar-open", "grok-2"], pattern: Some(ONE_DIGIT), ..GPT2 },
    Pre {
        names: &["seed-coder"],
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ..GPT2
    },
    Pre {
        names: &["deepseek-v3"],
        first: &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+"],
        pattern: Some(
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ),
        ..GPT2
    },
    Pre { names: &["deepseek-llm"], first: OF_DEEPSEEK, pattern: Some(ONE_NUMBER), ..GPT2 },
    Pre {
        names: &["qwen35"],
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        composes: true,
        ..GPT2
    },
    Pre {
        names: &["tekken"],
        pattern: Some(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        takes_whole: true,
        begins: true,
        ..GPT2
    },
    Pre {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        pattern: Some(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ..GPT2
    },
];

/// The rule of that name.
pub(super) fn named(name: &str) -> Option<&'static Pre> {
    PRES.iter().find(|pre| pre.names.contains(&name))
}

/// The name of the rule that a `tokenizer.json` cuts by; `whole` is its model's `ignore_merges`, and `known` the name that tokenizers of the family have. `None` where it is none of
/// these.
pub(super) fn of_document(pre_tokenizer: &Value, whole: bool, known: Option<&'static str>) -> Option<&'static str> {
    let (mut digits, mut pattern, mut bytes) = (false, None::<String>, false);
    let mut first: Vec<String> = Vec::new();
    for stage in stages(pre_tokenizer)? {
        let flag = |key: &str, default: bool| stage.get(key).map_or(Some(default), Value::as_bool);
        match stage.get("type")?.as_str()? {
            // What comes behind the bytes would cut them.
            _ if bytes => return None,
            "Digits" if flag("individual_digits", false)? => match pattern.replace(ONE_NUMBER.to_owned()) {
                None => (digits, pattern) = (true, None),
                Some(before) => first.push(before),
            },
            "Split" if is_isolated(stage)? => {
                first.extend(pattern.take());
                pattern = Some(spelled(stage.get("pattern")?.get("Regex")?.as_str()?));
            }
            "ByteLevel" if !flag("add_prefix_space", true)? => {
                bytes = true;
                match (flag("use_regex", true)?, &pattern) {
                    (true, None) => pattern = Some(OF_GPT2.to_owned()),
                    (false, Some(_)) => {}
                    _ => return None,
                }
            }
            _ => return None,
        }
    }
    let pattern = pattern.filter(|_| bytes)?;
    let same = |pre: &&Pre| pre.digits == digits && pre.first == first && pre.pattern.unwrap_or(OF_GPT2) == pattern;
    if let Some(known) = known.filter(|known| named(known).as_ref().is_some_and(same)) {
        return Some(known);
    }
    let all = || PRES.iter().filter(same);
    let pre = all().find(|pre| pre.takes_whole == whole).or_else(|| all().next())?;
    pre.names.first().copied()
}

/// An expression as rules have it.
fn spelled(pattern: &str) -> String {
    // Some spell the case of English endings out.
    const SPELLED: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
    let pattern = pattern.replace(SPELLED, "(?i:'s|'t|'re|'ve|'m|'ll|'d)");
    // Others have the ends of lines themselves where most have their names.
    pattern.replace('\r', r"\r").replace('\n', r"\n")
}

/// A cutter's own stages, one or several.
fn stages(pre_tokenizer: &Value) -> Option<Vec<&Value>> {
    match pre_tokenizer.get("type")?.as_str()? {
        "Sequence" => Some(pre_tokenizer.get("pretokenizers")?.as_array()?.iter().collect()),
        _ => Some(vec![pre_tokenizer]),
    }
}

/// True if what matches becomes a piece, and what lies between too. Removing what does not match is the same where everything matches.
fn is_isolated(stage: &Value) -> Option<bool> {
    let inverted = stage.get("invert").and_then(Value::as_bool).unwrap_or(false);
    Some(matches!((stage.get("behavior")?.as_str()?, inverted), ("Isolated", false) | ("Removed", true)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn name(pre_tokenizer: &Value, whole: bool) -> Option<&'static str> {
        of_document(pre_tokenizer, whole, None)
    }

    #[test]
    fn a_tokenizer_is_known_by_its_expression() {
        let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": regex});
        let sequence = |stages: &[Value]| json!({"type": "Sequence", "pretokenizers": stages});
        let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let digits = json!({"type": "Digits", "individual_digits": true});
        assert_eq!(name(&bytes(true), false), Some("gpt-2"));
        assert_eq!(name(&sequence(&[digits.clone(), bytes(true)]), false), Some("smollm"));
        assert_eq!(name(&sequence(&[split(THREE_DIGITS), bytes(false)]), true), Some("llama-bpe"));
        assert_eq!(name(&sequence(&[split(THREE_DIGITS), bytes(false)]), false), Some("dbrx"));
        let of_deepseek: Vec<Value> = OF_DEEPSEEK.iter().map(|first| split(&first.replace(r"\r\n", "\r\n"))).collect();
        let of_deepseek = sequence(&[&of_deepseek[..], &[digits.clone(), bytes(false)]].concat());
        assert_eq!(name(&of_deepseek, false), Some("deepseek-llm"));
        let spelled = THREE_DIGITS
            .replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])");
        assert_eq!(name(&sequence(&[split(&spelled), bytes(false)]), true), Some("llama-bpe"));
        for pre in PRES.iter().filter(|pre| pre.pattern.is_some()) {
            let first = pre.first.iter().map(|first| split(first));
            let own = sequence(&first.chain([split(pre.pattern.unwrap()), bytes(false)]).collect::<Vec<_>>());
            assert_eq!(of_document(&own, pre.takes_whole, Some(pre.names[0])), Some(pre.names[0]));
            // One of another expression is not its name.
            assert_eq!(of_document(&own, pre.takes_whole, Some("mpt")), name(&own, pre.takes_whole));
        }
        for unknown in [
            json!(null),
            json!({"type": "Metaspace"}),
            json!({"type": "Sequence"}),
            bytes(false),
            sequence(&[split("x"), bytes(false)]),
            sequence(&[split(OF_GPT2)]),
            sequence(&[split(OF_GPT2), bytes(true)]),
            sequence(&[bytes(true), digits]),
            json!({"type": "ByteLevel", "add_prefix_space": true}),
        ] {
            assert_eq!(name(&unknown, false), None, "{unknown}");
        }
    }

    #[test]
    fn no_name_stands_for_two_rules() {
        let mut names: Vec<&str> = PRES.iter().flat_map(|pre| pre.names).copied().collect();
        names.sort_unstable();
        names.windows(2).for_each(|pair| assert_ne!(pair[0], pair[1]));
    }
}
