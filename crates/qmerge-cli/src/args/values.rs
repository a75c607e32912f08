//! What values of options mean.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, StyledStr, TypedValueParser};
use clap::error::{ContextKind, ContextValue};
use qmerge::arithmetic::METHODS;
use qmerge::dtype::Dtype;
use qmerge::edit::OPERATORS;
use qmerge::formats::FORMATS;
use qmerge::plan::{EXPORTS, Part};
use qmerge::round::ROUNDINGS;

/// What to do where GGUF is asked for in a type that is not made.
const NO_GGUF: &str = "a base in GGUF keeps its types without --to; any other becomes a file with `--to q4_k_m`, `--to q8_0` or another of the types above; llama.cpp's llama-quantize makes more of one of `--to bf16`";

/// The names that `--to` takes. Those of other tools become ours.
pub(super) fn formats(same: bool) -> impl TypedValueParser<Value = String> {
    let same = same.then(|| PossibleValue::new("same").help("as the base is stored, weight by weight"));
    let known = FORMATS
        .iter()
        .filter(|format| format.is_made())
        .map(|format| PossibleValue::new(format.id()).help(format.about()).aliases(format.aliases()));
    // What is a format too is named once.
    let is_format = |id: &str| FORMATS.iter().any(|format| format.id() == id && format.is_made());
    let exports = EXPORTS.iter().filter(|export| !is_format(export.id()));
    let exports = exports.map(|export| PossibleValue::new(export.id()).help(export.about()));
    let names = PossibleValuesParser::new(same.into_iter().chain(known).chain(exports));
    Formats(names).map(|name| {
        let name = name.to_ascii_lowercase();
        let own = FORMATS.iter().find(|format| format.aliases().contains(&name.as_str()));
        own.map_or(name, |format| format.id().to_owned())
    })
}

/// Words that stand for no format of their own, and what to take for them.
const MEANT: &[(&[&str], &str)] = &[
    (
        &["int4", "4bit", "4-bit", "w4a16", "u4", "i4", "q4"],
        "4 bits are stored in many ways: `nf4` (bitsandbytes), `ct-int4` (compressed-tensors, as vLLM reads them), `gptq`, `mlx`, `hqq`, and `q4_k_m` in a GGUF file",
    ),
    (
        &["8bit", "8-bit", "w8a16", "u8", "i8", "q8"],
        "8 bits are stored in many ways: `int8` (bitsandbytes), `ct-int8` (compressed-tensors, as vLLM reads them), `fp8`, and `q8_0` in a GGUF file",
    ),
    (&["bnb", "bitsandbytes", "qlora"], "bitsandbytes' formats are `nf4`, `fp4` and `int8`"),
    (&["compressed-tensors", "ct"], "compressed-tensors' formats are `ct-int4`, `ct-int8`, `ct-nvfp4` and `ct-mxfp4`"),
    (&["nvfp4"], "it is `ct-nvfp4`"),
    (&["mxfp4"], "it is `ct-mxfp4`"),
    (
        &["awq"],
        "what is stored as AWQ stays so without --to; nothing else becomes AWQ here: `gptq` and `ct-int4` store groups of 4 bits too",
    ),
];

/// Names of formats. Whoever asks by another word hears what is meant by it.
#[derive(Clone)]
struct Formats(PossibleValuesParser);

impl TypedValueParser for Formats {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        self.0.parse_ref(command, argument, value).map_err(|mut error| {
            let name = value.to_string_lossy().to_ascii_lowercase();
            let meant = MEANT.iter().find(|(words, _)| words.contains(&name.as_str())).map(|(_, meant)| *meant);
            if let Some(meant) = meant.or(is_gguf_type(&name).then_some(NO_GGUF)) {
                // What clap finds similar is another thing.
                error.remove(ContextKind::SuggestedValue);
                error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(meant)]));
            }
            error
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}

/// True for `gguf`, and for types like Q4_K_M, q8_0 and IQ2_XS.
fn is_gguf_type(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let bits = name.strip_prefix('i').unwrap_or(&name).strip_prefix('q');
    name == "gguf" || bits.is_some_and(|bits| bits.starts_with(|c: char| c.is_ascii_digit()) && bits.contains('_'))
}

/// A span of time, in seconds.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    let text = text.trim();
    let units = [("h", 3600.0), ("min", 60.0), ("m", 60.0), ("s", 1.0)];
    let found = units.iter().find_map(|(unit, of)| Some((text.strip_suffix(unit)?, *of)));
    let (number, unit) = found.unwrap_or((text, 1.0));
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number * unit),
        _ => Err("write a time, like 90s, 20m or 2h".into()),
    }
}

/// A number of tokens.
pub(super) fn tokens(text: &str) -> Result<usize, String> {
    text.trim().parse().map_err(|_| "write a number of tokens, like 128".into())
}

/// A number of parts.
pub(super) fn parts(text: &str) -> Result<usize, String> {
    let number = text.trim().parse().ok().filter(|&number| Part::new(1, number).is_some());
    number.ok_or_else(|| "write a number of parts, like 4".into())
}

/// The names that `--rounding` takes.
pub(super) fn roundings() -> PossibleValuesParser {
    let auto = PossibleValue::new("auto").help("`adapter` where the output is coarser than 16 bits and the model can be run; else by what the adapter reads in the base's own format, and `nearest` in another; `feedback` at 16 bits, `nearest` at 32");
    let methods = ROUNDINGS.iter().map(|method| PossibleValue::new(method.id()).help(method.about()));
    PossibleValuesParser::new(std::iter::once(auto).chain(methods))
}

/// The names that `--method` takes.
pub(super) fn combinations() -> PossibleValuesParser {
    PossibleValuesParser::new(METHODS.iter().map(|method| PossibleValue::new(method.id).help(method.about)))
}

/// The names that `--tuned-method` takes.
pub(super) fn joinings() -> PossibleValuesParser {
    PossibleValuesParser::new(OPERATORS.iter().map(|(id, _, about)| PossibleValue::new(*id).help(*about)))
}

/// Bytes, with K, M, G or T (powers of 1024) behind.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let trimmed = text.trim().trim_end_matches(['b', 'B']).trim_end_matches(['i', 'I']);
    let (digits, unit) = match trimmed.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => (&trimmed[..at], unit.to_ascii_uppercase()),
        _ => (trimmed, ' '),
    };
    let shift = match unit {
        ' ' => 0,
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => return Err(format!("`{text}` is not a size: write 300M or 2G")),
    };
    let number = digits.trim().parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    let number = number.ok_or_else(|| format!("`{text}` is not a size: write 300M or 2G"))?;
    Ok((number * (1_u64 << shift) as f64) as u64)
}

/// A Ray cluster: where it listens for clients, or the word for that of this machine.
pub(super) fn cluster(text: &str) -> Result<String, String> {
    let is_address = text.strip_prefix("ray://").and_then(|rest| rest.rsplit_once(':'));
    let is_address = is_address.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if is_address || text == "ray" {
        return Ok(text.to_owned());
    }
    Err("it is no cluster: write ray://HOST:PORT, or ray for the one that this machine is in".into())
}

/// A folder for what is read again, and the bytes that it may take there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scratch {
    pub(crate) folder: PathBuf,
    pub(crate) bytes: u64,
}

/// `DIR` or `DIR=SIZE`.
pub(super) fn scratch(text: &str) -> Result<Scratch, String> {
    let (folder, bytes) = match text.rsplit_once('=') {
        Some((folder, bytes)) => (folder, size(bytes)?),
        None => (text, 8 << 30),
    };
    if folder.is_empty() {
        return Err("no folder is named: write DIR or DIR=SIZE, like scratch=20G".into());
    }
    Ok(Scratch { folder: PathBuf::from(folder), bytes })
}

/// A share from 0 to 1.
pub(super) fn share(text: &str) -> Result<f64, String> {
    fraction(text, 1.0).ok_or_else(|| "a share lies between 0 and 1, like 0.9 or 90%".into())
}

/// A number from 0 to `most`, or so many hundredths with a `%`.
fn fraction(text: &str, most: f64) -> Option<f64> {
    let (text, per) = text.trim().strip_suffix('%').map_or((text.trim(), 1.0), |number| (number.trim(), 100.0));
    text.parse::<f64>().ok().map(|number| number / per).filter(|share| (0.0..=most).contains(share))
}

/// A share of bytes, as `2%` or `0.02`.
pub(super) fn budget(text: &str) -> Result<f64, String> {
    fraction(text, 16.0).ok_or_else(|| "write a share of the output's bytes, like 2% or 0.02".into())
}

/// The names that `--promote` takes: types that tensors of a GGUF file can be written in.
pub(super) fn promotions() -> impl TypedValueParser<Value = String> {
    let auto = PossibleValue::new("auto").help("the next wider type of each weight's own");
    // A file's own types, and plain ones.
    let types = FORMATS.iter().filter(|format| format.is_written() && (format.is_of_gguf() || !format.quantizes()));
    let types = types.map(|format| PossibleValue::new(format.id()).help(format.about()));
    PossibleValuesParser::new(std::iter::once(auto).chain(types)).map(|name| name.to_ascii_lowercase())
}

/// A repository's name on the hub, as `hf upload` takes it: `name` or `owner/name`.
pub(super) fn repo_id(text: &str) -> Result<String, String> {
    let fits = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['-', '.'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let (owner, name) = text.split_once('/').unwrap_or(("owner", text));
    if fits(owner) && fits(name) { Ok(text.to_owned()) } else { Err("write owner/name".into()) }
}

/// Splits `PATH=WEIGHT`; a path that exists with its `=` is taken as it is, and so is an address with a question mark.
pub(crate) fn adapter_and_weight(text: &str) -> Result<(PathBuf, f64), String> {
    // What follows a question mark in an address is its own.
    let is_signed = text.contains('?') && qmerge_store::is_address(text.as_ref());
    if let Some((path, weight)) = text.rsplit_once('=').filter(|_| !is_signed)
        && !std::path::Path::new(text).exists()
    {
        let number = weight.parse().ok().filter(|number: &f64| number.is_finite());
        let text = qmerge_store::redacted_word(text);
        let number = number.ok_or_else(|| format!("`{weight}` in `{text}` is not a number"))?;
        return Ok((PathBuf::from(path), number));
    }
    Ok((PathBuf::from(text), 1.0))
}

/// A type of floats by its name; none for `same`.
pub(crate) fn floats(name: &str) -> Option<Dtype> {
    match name {
        "f32" => Some(Dtype::F32),
        "f16" => Some(Dtype::F16),
        "bf16" => Some(Dtype::BF16),
        _ => None,
    }
}

/// Worker threads, where 0 stands for one per processor.
pub(crate) fn threads(given: usize) -> usize {
    match given {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        threads => threads,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("300M"), Ok(300 << 20));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert_eq!(size("1.5k"), Ok(1536));
        assert_eq!(size("77"), Ok(77));
        for text in ["many", "nan", "infG", "-1M", "M"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn clusters_have_a_host_and_a_port() {
        for text in ["ray", "ray://head:10001", "ray://[::1]:10001"] {
            assert_eq!(cluster(text).as_deref(), Ok(text));
        }
        for text in ["", "ray://", "ray://head", "ray://:1", "ray://head:x", "slurm", "http://head:1"] {
            cluster(text).unwrap_err();
        }
    }

    #[test]
    fn a_scratch_has_a_folder_and_a_size() {
        let of = |folder: &str, bytes| Ok(Scratch { folder: PathBuf::from(folder), bytes });
        assert_eq!(scratch("a/b"), of("a/b", 8 << 30));
        assert_eq!(scratch("a=b=20G"), of("a=b", 20 << 30));
        for text in ["", "=1G", "a=", "a=x"] {
            assert!(scratch(text).is_err(), "{text}");
        }
    }

    #[test]
    fn repositories_are_told_from_paths() {
        assert_eq!(repo_id("me/my-merge_v1.0"), Ok("me/my-merge_v1.0".into()));
        assert_eq!(repo_id("merge"), Ok("merge".into()));
        for text in ["", "/a", "a/", "a/b/c", "./a", "--delete", "a b", "https://host/a"] {
            assert!(repo_id(text).is_err(), "{text}");
        }
    }

    #[test]
    fn weights_are_split_off() {
        assert_eq!(adapter_and_weight("a/b=0.5"), Ok((PathBuf::from("a/b"), 0.5)));
        assert_eq!(adapter_and_weight("a/b"), Ok((PathBuf::from("a/b"), 1.0)));
        for text in ["a=x", "a=nan", "a=inf", "a="] {
            assert!(adapter_and_weight(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_from_0_to_1() {
        for (text, want) in [("0", 0.0), ("0.9", 0.9), ("1", 1.0), ("90%", 0.9), ("100 %", 1.0)] {
            assert_eq!(share(text), Ok(want));
        }
        for (text, want) in [("2%", 0.02), (" 0.5 % ", 0.005), ("0.1", 0.1), ("0", 0.0)] {
            assert!((budget(text).unwrap() - want).abs() < 1e-12, "{text}");
        }
        for text in ["%", "nan%", "-1%", "inf", "2000%", ""] {
            assert!(budget(text).is_err(), "{text}");
        }
        for text in ["nan", "NaN", "inf", "-inf", "1.5", "-0.1", "90", "101%", "%", ""] {
            assert!(share(text).is_err(), "{text}");
        }
    }
}
