//! JSON as Python's `json` writes and reads it: with `NaN`, `Infinity` and `-Infinity`.
//!
//! transformers and PEFT save configurations with `json.dumps`, whose default allows the three. They become numbers here that keep their
//! spelling, so that a document that is written again says the same; [`Value::as_f64`] gives nothing for them.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::{Number, Value};

/// The spellings, and what stands for each while strict JSON is parsed: numbers that no file has, since a double cannot hold them.
const SPELLINGS: [(&str, &str); 3] =
    [("NaN", "1e1000000000701"), ("-Infinity", "-1e1000000000702"), ("Infinity", "1e1000000000702")];

/// Values that any document may have.
const FREE_VALUES: usize = 1 << 16;

/// Parses a document. Errors too if it has far more values than a configuration of its length: in memory, one takes a hundred times
/// the two bytes that it may have in the text.
pub fn parse(text: &str) -> serde_json::Result<Value> {
    let (strict, values) = strict(text);
    if values > text.len().checked_div(16).unwrap_or(0).saturating_add(FREE_VALUES) {
        return Err(serde::de::Error::custom(format!("{values} values in {} bytes", text.len())));
    }
    let mut value = serde_json::from_str(&strict)?;
    if matches!(strict, Cow::Owned(_)) {
        respell(&mut value);
    }
    Ok(value)
}

/// Parses a document of a known form in which the three spellings do not matter.
pub fn parse_as<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(&strict(text).0)
}

/// Parses an object.
pub fn parse_object(text: &str) -> serde_json::Result<serde_json::Map<String, Value>> {
    match parse(text)? {
        Value::Object(map) => Ok(map),
        other => serde_json::from_value(other),
    }
}

/// The text with numbers in place of the spellings that strict JSON does not know, and how many values it has at most. Strings stay as they are.
fn strict(text: &str) -> (Cow<'_, str>, usize) {
    let mut values = 1_usize;
    let mut out = String::new();
    let mut copied = 0;
    let (mut in_string, mut escaped) = (false, false);
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        in_string = byte == b'"';
        values = values.saturating_add(usize::from(matches!(byte, b',' | b'[' | b'{')));
        if !matches!(byte, b'N' | b'I' | b'-') {
            continue;
        }
        let rest = text.get(at..).unwrap_or_default();
        if let Some((spelling, number)) = SPELLINGS.iter().find(|(spelling, _)| rest.starts_with(spelling)) {
            out.push_str(text.get(copied..at).unwrap_or_default());
            // Set apart, so that `1NaN` stays an error.
            out.extend([" ", number, " "]);
            copied = at.saturating_add(spelling.len());
            bytes.nth(spelling.len().saturating_sub(2));
        }
    }
    if copied == 0 {
        return (Cow::Borrowed(text), values);
    }
    out.push_str(text.get(copied..).unwrap_or_default());
    (Cow::Owned(out), values)
}

/// Gives the numbers that [`strict`] put in their spelling back.
fn respell(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let text = number.to_string();
            if let Some((spelling, _)) = SPELLINGS.iter().find(|(_, stand_in)| same(&text, stand_in)) {
                *number = Number::from_string_unchecked((*spelling).to_owned());
            }
        }
        Value::Array(items) => items.iter_mut().for_each(respell),
        Value::Object(map) => map.values_mut().for_each(respell),
        _ => {}
    }
}

/// The parser may put a sign before an exponent.
fn same(text: &str, stand_in: &str) -> bool {
    text.replace('+', "") == stand_in
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts are what CPython's `json.dumps` writes.
    #[test]
    fn what_python_writes_is_read_and_written_again_the_same() {
        for text in [
            r#"{"time_step_limit":[0.0,Infinity]}"#,
            r#"{"a":NaN,"b":[-Infinity,{"c":Infinity}],"d":-1.5e-07}"#,
            "NaN",
            r#"{"NaN":"Infinity and \"-Infinity\" \\","e":NaN}"#,
            r#"{"é":"NaN","f":[Infinity,Infinity]}"#,
        ] {
            assert_eq!(serde_json::to_string(&parse(text).unwrap()).unwrap(), text);
        }
        let value = parse(r#"{"a": -Infinity, "b": 1e400, "c": "NaN"}"#).unwrap();
        assert_eq!((value["a"].as_f64(), value["b"].as_f64(), value["c"].as_str()), (None, None, Some("NaN")));
        assert_eq!(value["a"].to_string(), "-Infinity");
    }

    #[test]
    fn other_words_stay_errors() {
        for text in
            ["{\"a\": nan}", "[inf]", "[+Infinity]", "[Infinite]", "[-NaN]", "[NaNNaN]", "[1NaN]", "N", "-", "{NaN: 1}"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse_object("[1]").is_err());
        assert!(parse_object("{}").is_ok());
    }

    #[test]
    fn a_document_has_no_more_values_than_its_length_allows() {
        let zeros = |n: usize| format!("[{}0]", "0,".repeat(n));
        assert!(parse(&zeros(60_000)).is_ok());
        assert!(parse(&zeros(100_000)).unwrap_err().to_string().contains("values in 200003 bytes"));
        let text = format!("[{:?}, {}]", "[,{".repeat(1 << 17), "0,".repeat(10) + "0");
        assert!(parse(&text).is_ok(), "what stands in strings does not count");
    }

    /// Positions in errors are those of the file as far as no such number stands before them.
    #[test]
    fn broken_documents_say_where() {
        assert!(parse("{\n\"a\": }").unwrap_err().to_string().contains("line 2"));
    }
}
