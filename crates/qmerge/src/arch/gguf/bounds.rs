//! Bounds that llama.cpp holds the figures of any file to: it ends the program at one beyond them, where it does not refuse the file.

use crate::open::gguf::{Metadata, Value};

/// More are no model for it.
const MOST_LAYERS: u64 = 512;
const MOST_EXPERTS: u64 = 1024;

/// Figures of a file, behind the architecture's name.
struct Figures<'m> {
    metadata: &'m Metadata,
    architecture: &'m str,
    stored: &'m [(String, Vec<usize>)],
}

impl Figures<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn count(&self, key: &str) -> Option<u64> {
        self.metadata.first_integer(&self.key(key))
    }

    fn rows(&self, name: &str) -> Option<u64> {
        self.stored.iter().find(|(own, _)| own == name)?.1.first().map(|rows| *rows as u64)
    }

    /// Features of a head.
    fn head(&self) -> Option<u64> {
        let share = || self.count("embedding_length")?.checked_div(self.count("attention.head_count")?);
        self.count("attention.key_length").or_else(share)
    }

    /// Features of a head that each of several positions turns, in pairs.
    fn sections(&self) -> Option<u64> {
        let list = self.metadata.list(&self.key("rope.dimension_sections"))?;
        Some(
            list.iter()
                .map(|own| if let Value::Integer(own) = own { u64::try_from(own).unwrap_or(0) } else { 0 })
                .sum(),
        )
    }

    /// That a figure is no more than it may be.
    fn most(&self, key: &str, most: u64, why: &str) -> Option<String> {
        let own = self.count(key).filter(|own| *own > most)?;
        Some(format!("`{}` is {own}, and {why} {most} at most", self.key(key)))
    }

    /// Every figure that is beyond its bound.
    fn beyond(&self) -> Vec<String> {
        let has_groups = self.count("expert_group_count").filter(|groups| *groups > 0);
        let grouped = || {
            let (groups, experts) = (has_groups?, self.count("expert_count")?);
            let kept = self.count("expert_group_used_count").unwrap_or(0);
            let is_in_order =
                groups < experts && (groups == 1 || experts.is_multiple_of(groups) && (1..groups).contains(&kept));
            (!is_in_order).then(|| {
                format!("`{}` is {groups}, of which {kept} serve, of {experts} experts: groups have several experts each, and some do not serve", self.key("expert_group_count"))
            })
        };
        let odd = |key: &str| {
            let own = self.count(key).filter(|own| !own.is_multiple_of(2))?;
            Some(format!("`{}` is {own}, and features turn in pairs", self.key(key)))
        };
        let sections = || {
            let (sections, head) = (self.sections()?, self.head()?);
            let is_in_order = (1..=head).contains(&sections);
            (!is_in_order).then(|| {
                format!(
                    "the numbers of `{}` sum up to {sections}, and a head has {head} features",
                    self.key("rope.dimension_sections")
                )
            })
        };
        let deepstack = || {
            let (own, layers) = (self.count("n_deepstack_layers")?, self.count("block_count")?);
            (own >= layers).then(|| {
                format!(
                    "`{}` is {own}, and only layers in front of the last, of {layers}, can be added to",
                    self.key("n_deepstack_layers")
                )
            })
        };
        let positions = || {
            const TABLE: &str = "position_embd.weight";
            let (own, wanted) = (self.rows(TABLE)?, self.count("context_length")?);
            (own != wanted).then(|| format!("`{TABLE}` has {own} rows, and the model's positions are {wanted}"))
        };
        let kernel = || {
            let own = self.count("shortconv.l_cache").filter(|taps| *taps < 2)?;
            Some(format!("`{}` is {own}, and a convolution sees two positions at least", self.key("shortconv.l_cache")))
        };
        let found = [
            self.most("block_count", MOST_LAYERS, "a model has layers,"),
            self.most("expert_count", MOST_EXPERTS, "a layer has experts,"),
            grouped(),
            odd("rope.dimension_count"),
            odd("rope.dimension_count_swa"),
            sections(),
            deepstack(),
            kernel(),
            positions(),
        ];
        found.into_iter().flatten().collect()
    }
}

/// What is odd of a tokenizer for llama.cpp.
fn of_tokenizer(metadata: &Metadata) -> Option<String> {
    let is_empty = |key: &str| metadata.list(key).is_none_or(|list| list.is_empty());
    if metadata.text("tokenizer.ggml.model") == Some("gpt2") && is_empty("tokenizer.ggml.merges") {
        return Some("llama.cpp does not load the file: `model.merges` of tokenizer.json has no pairs".to_owned());
    }
    let kinds = metadata.list("tokenizer.ggml.token_type")?;
    let unused = kinds.iter().filter(|kind| *kind == Value::Integer(UNUSED)).count();
    let named = kinds.len().saturating_sub(unused);
    (named < unused).then(|| {
        format!(
            "tokenizer.json has {named} tokens, and the embedding {}: it may be another model's, or a part",
            kinds.len()
        )
    })
}

/// The kind of a token that no text has.
const UNUSED: i128 = 5;

/// What is beyond a bound in a file with these keys and tensors, each a warning.
pub(super) fn beyond(architecture: &str, metadata: &Metadata, stored: &[(String, Vec<usize>)]) -> Vec<String> {
    let figures = Figures { metadata, architecture, stored };
    let told = figures.beyond().into_iter();
    let told = told.map(|what| format!("llama.cpp does not load the file, or stops where it runs it: {what}"));
    told.chain(of_tokenizer(metadata)).collect()
}
