//! The language models of Qwen 2 VL, 2.5 VL and 3 VL: Qwen 2 and 3 with a rope that turns features by three positions, which are one and the same for text. To the first layers of Qwen 3 VL the tower adds
//! what it sees, layer by layer (deepstack).

use super::hyperparameters::{Model, Said};
use super::layout::{Defaults, Head, Layout};
use super::llama;
use super::qwen::{QWEN2, QWEN3, QWEN3_MOE, STACKED};
use crate::error::Result;

/// Transformers has no class for such a language model alone with its head; it is Qwen 2's.
pub(super) const QWEN2_VL: Layout = Layout {
    architecture: "qwen2vl",
    model_types: &["qwen2_vl_text", "qwen2_5_vl_text"],
    say: of_qwen2,
    defaults: Defaults { eps: 1e-5, theta: 1_000_000.0, rope: Some("mrope"), ..QWEN2.defaults },
    is_large: |_, _| false,
    ..QWEN2
};

pub(super) const QWEN3_VL: Layout = Layout {
    architecture: "qwen3vl",
    model_types: &["qwen3_vl_text"],
    say: of_qwen3,
    defaults: Defaults { theta: 500_000.0, ..QWEN3.defaults },
    ..QWEN3
};

pub(super) const QWEN3_VL_MOE: Layout = Layout {
    architecture: "qwen3vlmoe",
    model_types: &["qwen3_vl_moe_text"],
    say: of_qwen3,
    joins: &STACKED,
    defaults: Defaults { theta: 500_000.0, head: Head::Share, ..QWEN3_MOE.defaults },
    ..QWEN3_MOE
};

/// The layers of the tower whose outputs go to layers of the language model.
pub(super) const DEEPSTACK: &str = "deepstack_visual_indexes";
/// How many there are where nothing is said.
const DEFAULT_DEEPSTACK: usize = 3;

/// Features that each of three positions turns, in pairs, where nothing is said.
const DEFAULT_SECTIONS: [usize; 4] = [16, 24, 24, 0];

fn of_qwen2(said: &mut Said, model: &Model<'_>) -> Result<()> {
    llama::plain(said, model)?;
    let (pairs, given) = (model.head_dim() / 2, model.rope.sections());
    let sections = given.clone().unwrap_or_else(|| DEFAULT_SECTIONS.to_vec());
    // Transformers cuts a head's pairs by them, to the last.
    let sum: usize = sections.iter().fold(0, |sum, own| sum.saturating_add(*own));
    if sum != pairs {
        return Err(model.fields.misfit(format!(
            "the numbers of `mrope_section` sum up to {sum}, and a head has {pairs} pairs of features, `hidden_size` / `num_attention_heads` / 2"
        )));
    }
    if given.is_none() {
        // llama.cpp does not load a file without them.
        said.counts("rope.dimension_sections", &sections);
    }
    Ok(())
}

fn of_qwen3(said: &mut Said, model: &Model<'_>) -> Result<()> {
    llama::plain(said, model)?;
    if model.rope.sections().is_none() {
        said.counts("rope.dimension_sections", &[24, 20, 20, 0]);
    }
    let layers = model.fields.list(DEEPSTACK)?.map_or(DEFAULT_DEEPSTACK, <[_]>::len);
    said.count("n_deepstack_layers", layers);
    Ok(())
}
