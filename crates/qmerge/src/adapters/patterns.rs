//! Python's `re` as PEFT uses it: rank and alpha patterns.

use std::sync::OnceLock;

use fancy_regex::Regex;

use crate::error::{Result, malformed};

/// Numbers for modules, by pattern, in file order. Each pattern is compiled once.
#[derive(Clone, Debug, Default)]
pub(super) struct Patterns {
    pairs: Vec<(String, f64)>,
    compiled: OnceLock<Vec<Regex>>,
}

impl Patterns {
    /// The pairs of a configuration.
    pub(super) fn new(pairs: Vec<(String, f64)>) -> Self {
        Self { pairs, compiled: OnceLock::new() }
    }

    /// True if there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The rank of a module, which some pattern may give.
    pub(super) fn rank(&self, name: &str, default: usize) -> Result<usize> {
        match self.lookup(name)? {
            None => Ok(default),
            Some(rank) if rank >= 1.0 && rank.fract() == 0.0 && rank <= f64::from(1 << 24) => Ok(rank as usize),
            Some(rank) => Err(malformed(format!(
                "`rank_pattern` gives `{name}` the rank {rank}, expected a whole number from 1 on"
            ))),
        }
    }

    /// The value of the first pattern, in file order, for which `re.match(rf"(.*\.)?({pattern})$", name)` holds.
    ///
    /// Source: PEFT 0.21, `utils/other.py`, `get_pattern_key`.
    pub(super) fn lookup(&self, name: &str) -> Result<Option<f64>> {
        let compiled = match self.compiled.get() {
            Some(compiled) => compiled,
            None => {
                let compiled = self.pairs.iter().map(|(pattern, _)| anchored(pattern)).collect::<Result<_>>()?;
                self.compiled.get_or_init(|| compiled)
            }
        };
        for ((pattern, value), regex) in self.pairs.iter().zip(compiled) {
            let matched = regex
                .is_match(name)
                .map_err(|cause| malformed(format!("the pattern `{pattern}` cannot be matched: {cause}")))?;
            if matched {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

fn anchored(pattern: &str) -> Result<Regex> {
    compile(&format!(r"\A(.*\.)?({})\z", python_classes(pattern)))
        .map_err(|cause| malformed(format!("the pattern `{pattern}` is not a regular expression: {cause}")))
}

/// Compiles a file's expression for whole paths.
pub(super) fn whole(expression: &str) -> std::result::Result<Regex, Box<fancy_regex::Error>> {
    compile(&format!(r"\A(?:{expression})\z"))
}

/// Compiles a user's or a file's expression.
pub(super) fn compile(pattern: &str) -> std::result::Result<Regex, Box<fancy_regex::Error>> {
    Regex::new(pattern).map_err(Box::new)
}

/// In a character class Python takes `[` and `&&`, `--`, `~~` literally; the engine here would see set operations.
fn python_classes(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars().peekable();
    let mut inside = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                out.push(c);
                out.extend(chars.next());
                continue;
            }
            '[' if inside => out.push('\\'),
            '[' => {
                inside = true;
                out.push(c);
                // A closing bracket in first place is literal.
                if chars.peek() == Some(&'^') {
                    out.extend(chars.next());
                }
                if chars.peek() == Some(&']') {
                    out.push('\\');
                    out.extend(chars.next());
                }
                continue;
            }
            ']' => inside = false,
            '&' | '~' if inside && chars.peek() == Some(&c) => out.push('\\'),
            _ => {}
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values were computed with Python 3.11.
    #[test]
    fn patterns_match_as_python_matches() {
        let cases = [
            ("q", "q", true),
            ("q", "layers.0.q", true),
            ("q", "layers.0.mlp.q", true),
            ("q", "xq", false),
            ("layers.1", "layers.1.q", false),
            ("1.q", "layers.1.q", true),
            ("1.q", "layers.11.q", false),
            ("^q", "q", true),
            ("^q", "layers.q", false),
            ("^layers.1.q", "layers.1.q", true),
            ("^layers.1.q", "model.layers.1.q", false),
            ("q|xq", "a.xq", true),
            (r"layers\.[0-3]\.q", "model.layers.2.q", true),
            (r".*\.gate_up_proj", "model.layers.0.mlp.experts.gate_up_proj", true),
            ("(?!k)[a-z]+_proj", "a.k_proj", false),
            ("(?!k)[a-z]+_proj", "a.q_proj", true),
            ("[a&&b]_proj", "x.&_proj", true),
        ];
        for (pattern, name, want) in cases {
            let found = Patterns::new(vec![(pattern.into(), 4.0)]).lookup(name).unwrap();
            assert_eq!(found.is_some(), want, "{pattern} on {name}");
        }
    }

    #[test]
    fn the_first_pattern_in_file_order_wins() {
        let patterns = Patterns::new(vec![("q".to_owned(), 1.0), ("layers.0.q".to_owned(), 2.0)]);
        assert_eq!(patterns.lookup("layers.0.q").unwrap(), Some(1.0));
        let broken = Patterns::new(vec![("(".into(), 1.0)]);
        assert!(broken.lookup("q").is_err() && broken.lookup("q").is_err());
    }
}
