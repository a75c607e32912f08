//! What is known of an architecture, a row for each.

use super::hyperparameters::{Model, Said};
use super::join::Join;
use super::wants::Wired;
use super::{
    Heads, Names, arcee, cohere, ernie4_5, exaone4, falcon, gemma, gemma4, glm, glm4, gpt_bigcode, gpt_neox, gpt2,
    granite, hunyuan, lfm2, llama,
};
use super::{deepseek, ernie4_5_moe, gemma3n, glm4_moe, gpt_oss, llama4, phimoe, qwen_delta, qwen_vl};
use super::{
    minimax_m2, mistral3, nemotron, olmo, olmo2, olmoe, phi2, phi3, qwen, seed_oss, smollm3, stablelm, starcoder2,
    towers,
};
use crate::arch::Fields;
use crate::error::{Result, unsupported};
use crate::open::ModelConfig;
use crate::open::gguf::Ways;

/// What remains to be done with a folder.
const CONVERTER: &str = "turn that into GGUF with llama.cpp's convert_hf_to_gguf.py";

/// Every architecture.
pub(super) const LAYOUTS: &[Layout] = &[
    llama::LLAMA,
    qwen::QWEN2,
    qwen::QWEN3,
    llama::MIXTRAL,
    qwen::QWEN2_MOE,
    qwen::QWEN3_MOE,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
    gemma4::GEMMA4,
    gemma4::GEMMA4_MOE,
    gemma3n::GEMMA3N,
    llama4::LLAMA4,
    ernie4_5_moe::ERNIE4_5_MOE,
    phimoe::PHIMOE,
    phi3::PHI3,
    mistral3::MINISTRAL3,
    smollm3::SMOLLM3,
    glm::GLM,
    glm4::GLM4,
    granite::GRANITE_HYBRID,
    granite::GRANITE,
    arcee::ARCEE,
    olmo::OLMO,
    olmo2::OLMO2,
    olmo2::OLMO3,
    cohere::COHERE,
    cohere::COHERE2,
    exaone4::EXAONE4,
    seed_oss::SEED_OSS,
    starcoder2::STARCODER2,
    stablelm::STABLELM,
    phi2::PHI2,
    gpt_neox::GPT_NEOX,
    falcon::FALCON_NORMS,
    falcon::FALCON,
    gpt2::GPT2,
    gpt_bigcode::GPT_BIGCODE,
    ernie4_5::ERNIE4_5,
    hunyuan::HUNYUAN,
    hunyuan::HUNYUAN_MOE,
    nemotron::NEMOTRON,
    lfm2::LFM2,
    lfm2::LFM2_MOE,
    gpt_oss::GPT_OSS,
    deepseek::DEEPSEEK2,
    deepseek::DEEPSEEK3,
    deepseek::GLM4_MOE_LITE,
    glm4_moe::GLM4_MOE,
    olmoe::OLMOE,
    granite::GRANITE_MOE_SHARED,
    granite::GRANITE_MOE,
    minimax_m2::MINIMAX_M2,
    qwen_delta::QWEN3_NEXT,
    qwen_delta::QWEN35,
    qwen_delta::QWEN35_MOE,
    qwen_vl::QWEN2_VL,
    qwen_vl::QWEN3_VL,
    qwen_vl::QWEN3_VL_MOE,
];

/// An architecture.
#[derive(Debug)]
pub(crate) struct Layout {
    /// `general.architecture`.
    pub(super) architecture: &'static str,
    /// `model_type` of the families that are stored so.
    pub(super) model_types: &'static [&'static str],
    /// The class that transformers has for a model of it.
    pub(super) class: &'static str,
    /// Names outside the layers.
    pub(super) outside: Names,
    /// What all paths but the head's begin with, and may begin without.
    pub(super) wrapper: Option<&'static str>,
    /// What the path of a layer begins with, in front of its number.
    pub(super) layers: &'static str,
    /// Names in a layer that most architectures have.
    pub(super) common: Names,
    /// Names in a layer that are not among those.
    pub(super) inside: Names,
    /// Experts of a layer, if there are any: the module that they lie in, and what it calls gate, up and down.
    pub(super) experts: Option<(&'static str, [&'static str; 3])>,
    /// True if the converter writes stacks of experts in the order of these names; else in the alphabet's.
    pub(super) stacks_as_named: bool,
    /// Weights of a layer that lie in several tensors, or turned.
    pub(super) joins: &'static [Join],
    /// Names that most have and the architecture has not, or for something else.
    pub(super) without: &'static [&'static str],
    /// Tensors whose rows have another order in the file than in the model.
    pub(super) ordered: &'static [(&'static str, Heads)],
    /// True if one was added to the weights of norms.
    pub(super) adds_one_to_norms: bool,
    /// True if llama.cpp looks for an `output.weight`, and takes the embedding only where there is none.
    pub(super) has_head: bool,
    /// The field of `config.json` that says that attention has biases; `None` where it has in every model.
    pub(super) bias_field: Option<&'static str>,
    /// Tensors that may have a bias: llama.cpp does not load a file with another.
    pub(super) biased: &'static [&'static str],
    /// Tensors that llama.cpp does not do without, though folders of the family may lack them; in names `*` is every layer, and `+` every one behind the leading layers without experts.
    pub(super) needs: &'static [&'static [&'static str]],
    /// Figures that llama.cpp has for all models of the architecture.
    pub(super) wired: &'static [Wired],
    /// A table of the model that a file has as many rows of as of the embedding: those that are missing are zeros.
    pub(super) padded: Option<&'static str>,
    /// True of the family's models that are stored so, where they are not all alike.
    pub(super) fits: fn(&Fields<'_>) -> bool,
    /// Which these are, in words, where others of the family are not stored at all.
    pub(super) only_those: Option<&'static str>,
    /// A tensor of the first layer that others of the architecture have not.
    pub(super) only_with: Option<&'static str>,
    /// A key behind the architecture's name that others of the architecture have not.
    pub(super) only_told: Option<&'static str>,
    /// True if `config.json` says outside of the rope as well how many positions the model had before it was stretched, without which a loader takes a default.
    pub(super) repeats_positions: bool,
    /// How a file of it has its tokenizer.
    pub(super) ways: Ways,
    /// Says a model's hyperparameters.
    pub(super) say: fn(&mut Said, &Model<'_>) -> Result<()>,
    /// What transformers takes for fields that a configuration leaves out.
    pub(super) defaults: Defaults,
    /// True for the size of 70 billion weights, by heads of queries and of keys, among models of 80 layers: its values are so few that llama.cpp gives them more bits.
    pub(super) is_large: fn(usize, usize) -> bool,
}

/// What transformers takes for fields that a configuration leaves out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    pub(super) head: Head,
    /// The field of the norms' epsilon.
    pub(super) eps_field: &'static str,
    pub(super) eps: f64,
    /// `max_position_embeddings`, of families that have a default for it.
    pub(super) positions: Option<usize>,
    /// A feed-forward that nothing is said of is four times as wide as the residual stream.
    pub(super) is_four_times_as_wide: bool,
    /// Feed-forwards may have a width of their own in each layer.
    pub(super) widths_by_layer: bool,
    /// `n_group` and `topk_group`, of families that have groups of experts.
    pub(super) groups: Option<(usize, usize)>,
    /// `rope_theta`.
    pub(super) theta: f64,
    /// Of layers with a window.
    pub(super) local: Local,
    /// The share of a head's features that the rope turns.
    pub(super) share: f64,
    /// A kind of rope that only the family has (HunYuan, Gemma 4).
    pub(super) rope: Option<&'static str>,
}

/// The width of a head that no `head_dim` says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Head {
    /// A share of the residual stream, which goes without saying.
    Unsaid,
    /// The same, whatever is given.
    Never,
    /// The same, which a file says.
    Share,
    /// So many features.
    Of(usize),
}

/// The base of the frequencies in layers with a window.
#[derive(Clone, Copy, Debug)]
pub(super) enum Local {
    /// That of all layers, which goes without saying.
    Unsaid,
    /// The same, which a file says.
    Same,
    /// `rope_local_base_freq`, or this.
    Own(f64),
}

impl Layout {
    /// The layout of a family; errors if no file is made of it, and names those of which one is.
    pub(crate) fn of(config: &ModelConfig) -> Result<&'static Self> {
        let model_type = config.model_type();
        let fields = Fields::new(config);
        let own = |layout: &&Self| layout.model_types.contains(&model_type) && (layout.fits)(&fields);
        let only_those = || LAYOUTS.iter().find(|layout| layout.model_types.contains(&model_type))?.only_those;
        LAYOUTS.iter().find(own).ok_or_else(|| match only_those() {
            Some(those) => unsupported(format!("models of type `{model_type}` are turned into GGUF where {those}, which is not so here"))
                .in_file(&config.path)
                .with_hint(format!("leave out --to, or take --to bf16 into a folder, and {CONVERTER}")),
            None => unsupported(format!("models of type `{model_type}` are not turned into GGUF"))
                .in_file(&config.path)
                .with_hint(format!(
                    "types that are: {}; for any other leave out --to, or take --to bf16 into a folder, and {CONVERTER}",
                    Self::known_types().join(", ")
                )),
        })
    }

    /// The layout of models of that type.
    #[cfg(test)]
    pub(crate) fn find(model_type: &str) -> Option<&'static Self> {
        LAYOUTS.iter().find(|layout| layout.model_types.contains(&model_type))
    }

    /// The types of models that have one.
    pub(crate) fn known_types() -> Vec<&'static str> {
        distinct(LAYOUTS.iter().flat_map(|layout| layout.model_types).copied().chain(towers::types()))
    }

    /// The architectures that there are.
    pub(super) fn architectures() -> Vec<&'static str> {
        distinct(LAYOUTS.iter().map(|layout| layout.architecture))
    }

    /// True if layers have experts.
    pub(super) fn has_experts(&self) -> bool {
        self.experts.is_some() || self.joins.iter().any(Join::is_stack)
    }

    /// True if a file is made of the stacks of experts that mlx_lm writes.
    pub(crate) fn takes_mlx(&self) -> bool {
        self.joins.iter().any(|join| join.name().contains(crate::arch::SWITCH))
    }

    /// What the stack of a projection is sorted by among those of a layer.
    pub(crate) fn rank(&self, projection: &str) -> (usize, String) {
        let each = self.experts.filter(|_| self.stacks_as_named).map_or([""; 3], |(_, each)| each);
        (each.iter().position(|own| *own == projection).unwrap_or(0), projection.to_owned())
    }

    /// `general.architecture`.
    pub(crate) fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// True of a model's table that files of an architecture may have with more rows, of zeros.
    pub(crate) fn may_be_padded(name: &str) -> bool {
        LAYOUTS.iter().any(|layout| layout.padded.is_some_and(|padded| padded == towers::alone(name)))
    }

    /// Rows of zeros that a file has behind those of the model's table of that name, beside an embedding of so many tokens.
    pub(crate) fn padding(&self, name: &str, shape: &[usize], tokens: usize) -> usize {
        let is_padded = self.padded.is_some_and(|padded| padded == towers::alone(name));
        shape.first().filter(|_| is_padded).map_or(0, |rows| tokens.saturating_sub(*rows))
    }

    /// The class that transformers has for a model of it.
    pub(crate) fn class(&self) -> &'static str {
        self.class
    }

    /// The field that says that attention has biases.
    pub(crate) fn bias_field(&self) -> Option<&'static str> {
        self.bias_field
    }

    /// True if `config.json` says `original_max_position_embeddings` outside of the rope too.
    pub(crate) fn repeats_positions(&self) -> bool {
        self.repeats_positions
    }

    /// How a file of it has its tokenizer.
    pub(crate) fn ways(&self) -> Ways {
        self.ways
    }

    /// True of a model of 70 billion weights, whose values have more bits.
    pub(crate) fn is_large(&self, layers: usize, heads: usize, kv_heads: usize) -> bool {
        layers == 80 && (self.is_large)(heads, kv_heads)
    }

    /// What a file says of a model with so many tokens; `file_type` is the number of its type.
    pub(crate) fn said(&self, config: &ModelConfig, tokens: usize, file_type: u32) -> Result<Said> {
        let fields = Fields::new(config);
        let said = || {
            let model = Model::read(self, fields, tokens, file_type)?;
            let mut said = Said::of(self.architecture);
            (self.say)(&mut said, &model)?;
            Ok(said)
        };
        said().map_err(
            |error: crate::error::Error| {
                if error.file().is_none() { error.in_file(&config.path) } else { error }
            },
        )
    }
}

/// Each once, in the order in which they come first.
fn distinct<'n>(names: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    let mut found: Vec<&str> = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_is_of_a_family_and_the_other_way_round() {
        let families: Vec<_> = crate::open::gguf::families().collect();
        for (architecture, model_type, has_experts) in &families {
            let own = |layout: &&Layout| layout.architecture == *architecture && layout.has_experts() == *has_experts;
            assert!(LAYOUTS.iter().any(|layout| own(&layout)) && Layout::find(model_type).is_some(), "{model_type}");
        }
        for layout in LAYOUTS {
            assert!(families.iter().any(|(architecture, ..)| *architecture == layout.architecture), "{layout:?}");
        }
    }
}
