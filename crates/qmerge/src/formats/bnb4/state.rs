//! The `quant_state` of a bitsandbytes 4-bit weight: a small JSON object stored as a U8 tensor.
//!
//! Written as Python's `json.dumps` writes it, byte for byte: fields in a fixed order, `", "` and `": "`, floats by
//! `repr`. Source: bitsandbytes 0.50.2, `functional.py`, `QuantState.as_dict`.

use serde_json::Value;

use super::nested::Nested;
use crate::dtype::Dtype;
use crate::error::{Result, malformed};
use crate::open::{byte_size, json};

/// What the state says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct QuantState {
    /// "nf4" or "fp4".
    pub(crate) quant_type: String,
    /// Elements per block.
    pub(crate) block: usize,
    /// Type that the weight had, and that decoding rounds to.
    pub(crate) dtype: Dtype,
    /// Dimensions of the weight.
    pub(crate) shape: Vec<usize>,
    /// Second level, for double quantization.
    pub(crate) nested: Option<Nested>,
}

/// Block sizes that bitsandbytes accepts.
pub(crate) const BLOCK_SIZES: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

impl QuantState {
    /// Reads the JSON.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("the quant_state is not UTF-8"))?;
        let json = json::parse(text).map_err(|error| malformed(format!("the quant_state is not JSON: {error}")))?;
        let field = |name: &str| {
            json.get(name)
                .filter(|value| !value.is_null())
                .ok_or_else(|| malformed(format!("the quant_state has no `{name}`")))
        };
        let dtype = |name: &str| {
            field(name)?
                .as_str()
                .and_then(Dtype::from_torch_name)
                .filter(|dtype| dtype.is_plain_float())
                .ok_or_else(|| malformed(format!("the quant_state's `{name}` is not float32, float16 or bfloat16")))
        };
        let size = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        let block = size(field("blocksize")?).filter(|block| BLOCK_SIZES.contains(block)).ok_or_else(|| {
            let given = json.get("blocksize").unwrap_or_default();
            malformed(format!("blocksize {given} is none of {BLOCK_SIZES:?}"))
        })?;
        let shape = field("shape")?
            .as_array()
            .and_then(|dims| dims.iter().map(size).collect::<Option<Vec<_>>>())
            .filter(|shape| !shape.is_empty() && byte_size(Dtype::F32, shape).is_some())
            .ok_or_else(|| malformed("the quant_state's `shape` is not a list of sizes that a weight can have"))?;
        let nested = match json.get("nested_blocksize").filter(|value| !value.is_null()) {
            None => None,
            Some(block) => Some(Nested {
                block: size(block).filter(|&n| n > 0).ok_or_else(|| malformed("nested_blocksize is not a size"))?,
                dtype: dtype("nested_dtype")?,
                offset: number(field("nested_offset")?).ok_or_else(|| malformed("nested_offset is not a number"))?,
            }),
        };
        Ok(Self {
            quant_type: field("quant_type")?.as_str().unwrap_or_default().to_owned(),
            block,
            dtype: dtype("dtype")?,
            shape,
            nested,
        })
    }

    /// The JSON as bitsandbytes writes it.
    pub(crate) fn to_json(&self) -> String {
        let shape: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let mut text = format!(
            r#"{{"quant_type": "{}", "blocksize": {}, "dtype": "{}", "shape": [{}]"#,
            self.quant_type,
            self.block,
            self.dtype.torch_name(),
            shape.join(", ")
        );
        if let Some(nested) = &self.nested {
            text += &format!(
                r#", "nested_blocksize": {}, "nested_dtype": "{}", "nested_offset": {}"#,
                nested.block,
                nested.dtype.torch_name(),
                python_repr(f64::from(nested.offset))
            );
        }
        text + "}"
    }

    /// The most bytes the JSON can take, whatever the offset.
    pub(crate) fn max_json_len(&self) -> u64 {
        /// The longest repr of a finite double.
        const LONGEST: usize = "-2.2250738585072014e-308".len();
        let bare = Self { nested: self.nested.map(|nested| Nested { offset: 0.0, ..nested }), ..self.clone() };
        (bare.to_json().len() + LONGEST) as u64
    }
}

fn number(value: &Value) -> Option<f32> {
    match value {
        // Python's spellings of what is not finite too, so that the error can name the scale instead of the syntax.
        Value::Number(number) => number.as_f64().map(|x| x as f32).or_else(|| number.to_string().parse().ok()),
        _ => None,
    }
}

/// `repr(float)`: the shortest digits that read back, positional from 1e-4 up to 1e16, else `d.de±XX`.
fn python_repr(x: f64) -> String {
    if !x.is_finite() {
        let sign = if x.is_sign_negative() { "-" } else { "" };
        return if x.is_nan() { "NaN".into() } else { format!("{sign}Infinity") };
    }
    let text = shortest(x);
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        // The digits decide the value, so printing it with as many decimals as they have is exact.
        let decimals =
            digits.split_once('.').map_or(0, |(_, fraction)| fraction.len() as i32) - exponent.parse().unwrap_or(0);
        return format!("{x:.*}", decimals.max(1) as usize);
    }
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// The shortest digits that read back, in scientific notation. Of two equally near, Python takes the even one; Rust's own shortest
/// form does not always, but its rounding to a given number of digits does.
fn shortest(x: f64) -> String {
    let text = format!("{x:e}");
    let digits = text.bytes().take_while(|&byte| byte != b'e').filter(u8::is_ascii_digit).count();
    let even = format!("{x:.*e}", digits - 1);
    if even.parse() == Ok(x) { even } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected strings are CPython's.
    #[test]
    fn floats_are_spelled_as_python_does() {
        let cases = [
            (0.05133247375488281, "0.05133247375488281"),
            (f64::from(0.163_486_48_f32), "0.16348648071289062"),
            (f64::from(2.000_000_2_f32), "2.000000238418579"),
            (100.0, "100.0"),
            (7.624394879468113e-39, "7.624394879468113e-39"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (123456789.0, "123456789.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-2.5e-7, "-2.5e-07"),
            (3.4028234663852886e38, "3.4028234663852886e+38"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (x, text) in cases {
            assert_eq!(python_repr(x), text);
        }
    }

    #[test]
    fn states_read_back() {
        let text = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 128], "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05133247375488281}"#;
        let state = QuantState::parse(text.as_bytes()).unwrap();
        assert_eq!(state.to_json(), text);
        assert!(state.max_json_len() >= text.len() as u64);
        let infinite = text.replace("0.05133247375488281", "-Infinity");
        assert_eq!(QuantState::parse(infinite.as_bytes()).unwrap().to_json(), infinite);
    }

    #[test]
    fn broken_states_say_what_is_wrong() {
        let good = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 128]}"#;
        for (from, to, cause) in [
            ("64, \"dtype", "63, \"dtype", "blocksize 63"),
            ("bfloat16", "int32", "dtype"),
            ("[64, 128]", "null", "shape"),
            ("[64, 128]", "[-1]", "shape"),
            ("[64, 128]", "[0, 9223372036854775808]", "shape"),
            ("[64, 128]", "[4294967296, 4294967296, 0]", "shape"),
            ("}", "", "not JSON"),
        ] {
            let error = QuantState::parse(good.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(cause), "{error}");
        }
    }
}
