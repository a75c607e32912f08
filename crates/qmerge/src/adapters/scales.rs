//! Factors on what adapters do, by patterns of module paths.

use fancy_regex::Regex;

use crate::error::{Result, usage};

/// `regex=factor` rules on module paths: the first that is found in a path is a factor on what adapters do there.
#[derive(Clone, Debug, Default)]
pub struct Scales {
    rules: Vec<(String, Regex, f64)>,
}

impl Scales {
    /// Reads rules.
    pub fn new(rules: &[String]) -> Result<Self> {
        let rules = rules.iter().map(|rule| parsed(rule).map(|(regex, factor)| (rule.clone(), regex, factor)));
        Ok(Self { rules: rules.collect::<Result<_>>()? })
    }

    /// The rules, as they were given.
    pub fn rules(&self) -> impl Iterator<Item = &str> + Clone {
        self.rules.iter().map(|(rule, ..)| rule.as_str())
    }

    /// The number of the rule that a module is found by, and its factor.
    pub(crate) fn find(&self, module: &str) -> Result<Option<(usize, f64)>> {
        for (number, (rule, regex, factor)) in self.rules.iter().enumerate() {
            let found = regex
                .is_match(module)
                .map_err(|cause| usage(format!("`--lora-scale {rule}`: it cannot be matched: {cause}")))?;
            if found {
                return Ok(Some((number, *factor)));
            }
        }
        Ok(None)
    }
}

/// `regex=factor`.
fn parsed(rule: &str) -> Result<(Regex, f64)> {
    let wrong = |problem: String| {
        usage(format!("`--lora-scale {rule}`: {problem}"))
            .with_hint("write --lora-scale 'regex=factor', like 'mlp=0.5'")
    };
    let (pattern, factor) = rule.rsplit_once('=').ok_or_else(|| wrong("it has no `=`".into()))?;
    let number = factor.trim().parse().ok().filter(|number: &f64| number.is_finite());
    let number = number.ok_or_else(|| wrong(format!("`{factor}` is not a number")))?;
    let regex = Regex::new(pattern).map_err(|cause| wrong(format!("not a regular expression: {cause}")))?;
    Ok((regex, number))
}
