//! StarCoder's first release: GPT-2 with one key for all queries, and linear layers as others have them.

use super::gpt2::GPT2;
use super::hyperparameters::{LAYER_EPS, Model, Said};
use super::layout::Layout;
use crate::error::Result;
use crate::open::gguf::Ways;

pub(super) const GPT_BIGCODE: Layout = Layout {
    architecture: "starcoder",
    model_types: &["gpt_bigcode"],
    class: "GPTBigCodeForCausalLM",
    ways: Ways { pre: Some("starcoder"), ..GPT2.ways },
    say,
    ..GPT2
};

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    if !fields.flag("multi_query", true)? {
        return Err(fields.unsaid("multi_query", &false.into()));
    }
    said.count("context_length", model.positions);
    said.count("embedding_length", model.hidden);
    said.count("feed_forward_length", fields.positive_if("n_inner")?.unwrap_or(4 * model.hidden));
    said.count("block_count", model.layers);
    said.count("attention.head_count", model.heads);
    said.count("attention.head_count_kv", 1);
    said.float(LAYER_EPS, model.eps);
    said.file_type(model);
    Ok(())
}
