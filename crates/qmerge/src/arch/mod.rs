//! What is known of model families, as data: where embeddings lie, what is stored transposed, how experts are laid out,
//! and which names moved between releases of transformers.
//!
//! One file per family and one line in [`ARCHS`]. A family that is not listed is merged all the same, by the rule that
//! names are equal; the last row, `generic`, holds what most families share.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

mod checked;
mod generic;
mod gpt2;
mod gpt_oss;
mod granite_moe;
mod linear;
mod llama4;
mod mixtral;
mod qwen_moe;
mod ties;
mod vision;

pub(crate) use checked::is_checked;
pub use linear::Role;
pub(crate) use linear::{head_in_memory, role};
pub use ties::{TIES, Tie, by_default as tied_by_default, find as find_tie};

/// Every family. The first whose `model_types` holds the model's type is taken, else the last.
pub static ARCHS: &[Arch] = &[
    gpt2::ARCH,
    gpt_oss::ARCH,
    granite_moe::ARCH,
    llama4::ARCH,
    mixtral::ARCH,
    qwen_moe::ARCH,
    vision::ARCH,
    generic::ARCH,
];

/// One family.
#[derive(Debug)]
pub struct Arch {
    /// `model_type` values of `config.json`.
    pub model_types: &'static [&'static str],
    /// Module paths of the input embedding, any of which may exist.
    pub embed: &'static [&'static str],
    /// Module paths of the output embedding.
    pub head: &'static [&'static str],
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
}

/// Routed experts: the names that an adapter may use, and where the numbers lie on disk.
#[derive(Clone, Copy, Debug)]
pub struct Experts {
    /// Name of the module that holds the experts, as a path suffix ("mlp.experts"), first the current one.
    pub modules: &'static [&'static str],
    /// Per-expert projections: gate, up, down ("gate_proj" …, or "w1", "w3", "w2").
    pub each: [&'static str; 3],
    /// Stacked parameters: gate and up together, down.
    pub stacked: [&'static str; 2],
    /// True if stacked parameters are (experts, in, out), so a matrix of one expert is transposed.
    pub in_out: bool,
    /// True if the module says `is_transposed`, which makes PEFT take stacked matrices as (in, out).
    pub is_transposed: bool,
    /// True if gate and up alternate instead of following each other.
    pub interleaved: bool,
    /// True if transformers makes one linear layer of each expert's matrices where the checkpoint is quantized with bitsandbytes, and stacks them
    /// otherwise: a stack cannot be read there.
    pub split_when_quantized: bool,
}

/// The stacked parameter that holds gate and up, as transformers names it in memory.
pub(crate) const GATE_UP: &str = "gate_up_proj";
/// The stacked parameter that holds down.
pub(crate) const DOWN: &str = "down_proj";

/// The row of a family.
pub fn find(model_type: &str) -> &'static Arch {
    ARCHS.iter().find(|arch| arch.model_types.contains(&model_type)).unwrap_or(&generic::ARCH)
}

/// What a family of encoders or state-space models puts before the model's own path where it has a head: transformers' `base_model_prefix`.
pub(crate) fn base_prefix(model_type: &str) -> Option<&'static str> {
    const PREFIXES: &[(&str, &str)] = &[
        ("albert", "albert"),
        ("bert", "bert"),
        ("big_bird", "bert"),
        ("camembert", "roberta"),
        ("deberta", "deberta"),
        ("deberta-v2", "deberta"),
        ("distilbert", "distilbert"),
        ("electra", "electra"),
        ("esm", "esm"),
        ("falcon_mamba", "backbone"),
        ("longformer", "longformer"),
        ("mamba", "backbone"),
        ("mamba2", "backbone"),
        ("mobilebert", "mobilebert"),
        ("mpnet", "mpnet"),
        ("roberta", "roberta"),
        ("rwkv", "rwkv"),
        ("vit", "vit"),
        ("xlm-roberta", "roberta"),
        ("xlm-roberta-xl", "roberta"),
    ];
    PREFIXES.iter().find(|(family, _)| *family == model_type).map(|(_, prefix)| *prefix)
}

/// True if the last component of the module path is one of `leaves`.
pub(crate) fn leaf_in(path: &str, leaves: &[&str]) -> bool {
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
        assert_eq!(find("no such family").embed, generic::ARCH.embed);
    }
}
