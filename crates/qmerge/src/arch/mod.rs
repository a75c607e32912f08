//! What is known of model families, as data: where embeddings lie, what is stored transposed, how experts are laid out, which names moved between
//! releases of transformers, and what a model consists of, for who runs it.
//!
//! A family is one file in `families`, which states what differs from another's row, and one line in [`ARCHS`]. One that is not listed is merged
//! all the same, by the rule that names are equal; its row is `generic`, which holds what most families share. `fields` and `rope` are what a family
//! reads its `config.json` by, [`spec`] is what comes out. Nothing here computes with weights: `qmerge-run` does.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

mod beginnings;
mod checked;
mod families;
mod fields;
mod fused;
pub(crate) mod gguf;
mod linear;
mod moved;
mod rope;
pub mod spec;
mod ties;
mod tower;

use crate::error::{Error, Kind, Result};
use crate::open::{Checkpoint, ModelConfig};
use spec::Spec;

pub(crate) use beginnings::begun;
pub(crate) use checked::is_checked;
pub use families::ARCHS;
pub use fields::Fields;
pub(crate) use fused::{FusedLayer, layers as fused_layers};
pub use linear::Role;
pub(crate) use linear::{head_in_memory, role};
pub(crate) use moved::{in_memory, on_disk};
pub use rope::{Rope, RopeDefaults};
pub use ties::{Tie, by_default as tied_by_default, find as find_tie};
pub use tower::language_model;
pub(crate) use tower::language_model_beside;

/// One family.
#[derive(Debug)]
pub struct Arch {
    /// `model_type` values of `config.json`.
    pub model_types: &'static [&'static str],
    /// Input and output embeddings, where they have names of their own; those of other families are looked for behind them.
    pub ties: &'static [Tie],
    /// Module paths of an output embedding that is stored under another name than what is tied says.
    pub head: &'static [&'static str],
    /// The table of learned positions, beside the input embedding.
    pub positions: Option<&'static str>,
    /// The list of layers, likewise.
    pub layers: &'static str,
    /// The norm behind the last layer, likewise.
    pub norm: &'static str,
    /// Last components of modules whose weight is stored (in, out) (GPT-2's `Conv1D`).
    pub transposed: &'static [&'static str],
    /// Last components of 2-D weights that are not linear layers, so never quantized.
    pub not_linear: &'static [&'static str],
    /// How routed experts are stored.
    pub experts: Option<Experts>,
    /// Components that may stand before a language model's own path, or not: wrappers that came and went between releases.
    pub wrappers: &'static [&'static str],
    /// Pairs of name fragments, whole components: an adapter may say the first where the checkpoint says the second.
    pub renames: &'static [(&'static str, &'static str)],
    /// The same family where stacks of experts lie as they do in memory, of one that is published with inputs as rows: transformers writes it so.
    pub as_in_memory: Option<&'static Arch>,
    /// True for a model of several towers, of which the language model is of another family: `text_config` says which.
    pub is_composed: bool,
    /// Reads the configuration of a model that is to run; `None` for a family that is merged only.
    pub spec: Option<fn(&Fields<'_>) -> Result<Spec>>,
}

impl Arch {
    /// Module paths that the output embedding may have, where the embeddings are those of `tie`.
    pub fn heads(&self, tie: Option<&Tie>) -> impl Iterator<Item = &'static str> {
        tie.map(Tie::head).into_iter().chain(self.head.iter().copied())
    }

    /// True where stacks of experts lie as (experts, inputs, outputs), as the family stores them.
    pub fn stacks_inputs_as_rows(&self) -> bool {
        self.experts.is_some_and(|experts| experts.in_out)
    }
}

/// Routed experts: the names that an adapter may use, and where the numbers lie on disk.
#[derive(Clone, Copy, Debug)]
pub struct Experts {
    /// Name of the module that holds the experts, as a path suffix ("mlp.experts"), first the current one.
    pub modules: &'static [&'static str],
    /// Per-expert projections: gate, where there is one, up, down ("gate_proj" …, or "w1", "w3", "w2").
    pub each: &'static [&'static str],
    /// Stacked parameters: gate and up together, or up alone, and down.
    pub stacked: [&'static str; 2],
    /// Last component of the module that routes, in memory, beside the experts.
    pub router: &'static str,
    /// True if stacked parameters are (experts, in, out), so a matrix of one expert is transposed.
    pub in_out: bool,
    /// True if the module says `is_transposed`, which makes PEFT take stacked matrices as (in, out).
    pub is_transposed: bool,
    /// True if PEFT takes their inputs for outputs: stacked parameters are (experts, in, out) in memory, and the module does not say so.
    pub is_mistaken: bool,
    /// True if gate and up alternate instead of following each other.
    pub interleaved: bool,
    /// True if transformers makes one linear layer of each expert's matrices where the checkpoint is quantized with bitsandbytes, and stacks them
    /// otherwise: a stack cannot be read there.
    pub split_when_quantized: bool,
}

impl Experts {
    /// False where an expert is two matrices with an activation between.
    pub(crate) fn has_gate(&self) -> bool {
        self.each.len() > 2
    }

    /// The projections of an expert that come first, side by side, and the last.
    pub fn projections(&self) -> (&'static [&'static str], &'static str) {
        self.each.split_last().map_or((&[], ""), |(last, first)| (first, *last))
    }

    /// The stacked parameters as transformers names them in memory.
    pub(crate) fn parameters(&self) -> [&'static str; 2] {
        [if self.has_gate() { GATE_UP } else { UP }, DOWN]
    }
}

/// What mlx_lm calls the module of a layer's experts, beside the one that other programs have.
pub(crate) const SWITCH: &str = "switch_mlp";
/// The stacked parameter that holds gate and up, as transformers names it in memory.
pub(crate) const GATE_UP: &str = "gate_up_proj";
/// The one that holds up, where there is no gate.
pub(crate) const UP: &str = "up_proj";
/// The stacked parameter that holds down.
pub(crate) const DOWN: &str = "down_proj";

/// The row of a family: its own, or that of all that have none.
pub fn find(model_type: &str) -> &'static Arch {
    ARCHS.iter().find(|arch| arch.model_types.contains(&model_type)).unwrap_or(&families::GENERIC)
}

/// The row of a model's checkpoint, where a family has more than one; `shape` is that of the first weight whose name ends so.
pub(crate) fn find_stored<'w>(
    model_type: &str,
    hidden: Option<u64>,
    shape: impl Fn(&str) -> Option<&'w [usize]>,
) -> &'static Arch {
    let arch = find(model_type);
    let Some((other, experts)) = arch.as_in_memory.zip(arch.experts) else { return arch };
    let [_, down] = experts.stacked;
    let hidden = hidden.and_then(|hidden| usize::try_from(hidden).ok());
    match shape(down) {
        Some(&[_, outputs, inputs]) if Some(outputs) == hidden && inputs != outputs => other,
        _ => arch,
    }
}

/// True if a model says that it has a head beside its embedding. One of several towers is tied where its language model is, whatever the document says first; and where
/// the document itself says nothing, since transformers ties such a model then.
pub fn is_untied(config: &ModelConfig) -> Result<bool> {
    let own = config.json.get("tie_word_embeddings").and_then(serde_json::Value::as_bool);
    Ok(own == Some(false) && language_model(config)?.tied() != Some(true))
}

/// The families that can be run.
pub fn runnable() -> impl Iterator<Item = &'static Arch> {
    ARCHS.iter().filter(|arch| arch.spec.is_some() || arch.is_composed)
}

/// The configuration of a model that is to run. Errors if the checkpoint has none.
pub fn config(checkpoint: &Checkpoint) -> Result<&ModelConfig> {
    checkpoint.config.as_ref().ok_or_else(|| {
        Error::new(Kind::Malformed, "no config.json: the kind of model is unknown")
            .in_file(&checkpoint.path)
            .with_hint("copy it from where the model was published")
    })
}

/// What a model consists of. Errors if it is of a family that cannot be run, and lists those that can.
pub fn spec_of(config: &ModelConfig) -> Result<Spec> {
    if let Some(key) = &config.unread {
        return Err(Error::new(
            Kind::Unsupported,
            format!("the key `{key}` is not understood, so the model cannot be run"),
        )
        .in_file(&config.path)
        .with_hint("a merge does not need to run the model: --fast"));
    }
    let config = &*language_model(config)?;
    let model_type = config.model_type();
    let Some(spec) = find(model_type).spec else {
        let known: Vec<&str> = runnable().flat_map(|arch| arch.model_types).copied().collect();
        let problem = match model_type {
            "" => "`model_type` is missing".to_owned(),
            _ => format!("models of type `{model_type}` cannot be run"),
        };
        return Err(Error::new(Kind::Unsupported, problem)
            .in_file(&config.path)
            .with_hint(format!(
                "types that can: {}; a merge of any other is calibrated through torch, with qmerge.torch.calibrate in Python",
                known.join(", ")
            )));
    };
    let fields = Fields::new(config);
    // Attention that looks ahead, which transformers obeys in families of decoders too.
    for (key, ahead) in [("is_causal", false), ("use_bidirectional_attention", true)] {
        if let Some(value) = fields.get(key).filter(|value| **value == ahead) {
            return Err(fields.unsupported(key, value).in_file(&config.path));
        }
    }
    let spec = spec(&fields).map_err(|error| error.in_file(&config.path))?;
    spec.check(&fields)?;
    Ok(spec)
}

/// What a family puts before the model's own path where it has a head, beside the common wrappers: transformers' `base_model_prefix`, which is the
/// type's name with few exceptions.
pub(crate) fn base_prefix(model_type: &str) -> String {
    const OTHERS: &[(&str, &[&str])] = &[
        ("backbone", &["falcon_mamba", "mamba", "mamba2", "xlstm"]),
        ("bert", &["bert-generation", "big_bird", "megatron-bert"]),
        ("deberta", &["deberta-v2"]),
        ("hgnetv2", &["hgnet_v2"]),
        ("roberta", &["camembert", "jina_embeddings_v3", "xlm-roberta", "xlm-roberta-xl", "xmod"]),
        ("vit", &["vit_mae", "vit_msn", "yolos"]),
        ("x_clip", &["xclip"]),
    ];
    let other = OTHERS.iter().find(|(_, types)| types.contains(&model_type)).map(|(prefix, _)| (*prefix).to_owned());
    other.unwrap_or_else(|| model_type.replace('-', "_"))
}

/// True for families of which PEFT takes the name of a projection (`gate_proj`, `w1`), wherever it stands among `target_modules`, for the stacked parameter that
/// holds it of all experts: layers of that name that are no experts cannot be targeted as modules. Source: PEFT 0.21,
/// `utils/transformers_weight_conversion.py`; transformers 5, `conversion_mapping.py`.
pub(crate) fn takes_layers_for_experts(model_type: &str) -> bool {
    const TYPES: &[&str] = &[
        "afmoe",
        "beam",
        "cohere2_moe",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "dots1",
        "ernie4_5_moe",
        "exaone_moe",
        "flex_olmo",
        "glm4_moe",
        "glm4_moe_lite",
        "glm4v_moe",
        "glm_moe_dsa",
        "hunyuan_v1_moe",
        "longcat_flash",
        "mellum",
        "minimax",
        "minimax_m2",
        "mixtral",
        "olmoe",
        "qwen3_moe",
        "qwen3_next",
        "qwen3_omni_moe",
        "sarvam_mla",
        "solar_open",
    ];
    TYPES.contains(&model_type)
}

/// True if the last component of the module path is one of `leaves`.
pub fn leaf_in(path: &str, leaves: &[&str]) -> bool {
    let leaf = path.rsplit('.').next().unwrap_or(path);
    leaves.contains(&leaf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_model_type_is_claimed_twice() {
        let mut seen = std::collections::HashSet::new();
        for arch in ARCHS {
            for model_type in arch.model_types {
                assert!(seen.insert(*model_type), "{model_type}");
            }
        }
        assert_eq!(find("no such family").head, families::GENERIC.head);
    }
}
