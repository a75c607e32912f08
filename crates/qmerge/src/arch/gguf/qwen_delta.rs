//! Qwen 3 Next and Qwen 3.5: most layers have a gated delta rule, whose heads a file has in another order.
//!
//! A key is shared by several values. Qwen 3 Next's matrix has queries, keys, values and gates key by key, a file each apart. Qwen 3.5's has them apart, and the values that share a key
//! beside each other; in a file they follow each other over all keys, first the first value of each.

use super::ROUTER;
use super::hyperparameters::{Model, Said};
use super::join::{Counts, Join};
use super::layout::{Defaults, Head, Layout};
use super::llama::PLAIN;
use super::qwen::{EXPERTS, SHARED, STACKED};
use super::weave::{Change, Dims, Order, Split};
use crate::error::Result;

const DELTA: Layout = Layout {
    architecture: "qwen3next",
    adds_one_to_norms: true,
    biased: &["ssm_dt"],
    say,
    defaults: Defaults { head: Head::Of(256), share: 0.25, ..PLAIN.defaults },
    ..PLAIN
};

pub(super) const QWEN3_NEXT: Layout = Layout {
    model_types: &["qwen3_next"],
    class: "Qwen3NextForCausalLM",
    inside: &[
        ("post_attention_norm", "post_attention_layernorm"),
        (ROUTER, "mlp.gate"),
        SHARED[0],
        SHARED[1],
        SHARED[2],
        SHARED[3],
        ("ssm_ba", "linear_attn.in_proj_ba"),
        ("ssm_out", "linear_attn.out_proj"),
    ],
    without: &["ffn_norm"],
    experts: EXPERTS,
    joins: &[
        Join::split(
            "linear_attn.in_proj_qkvz.weight",
            &[("attn_qkv.weight", false), ("attn_gate.weight", false)],
            Dims::Rows,
            by_key,
        ),
        Join::renamed("linear_attn.norm.weight", &[("ssm_norm.weight", false)]),
        Join::renamed("linear_attn.dt_bias", &[("ssm_dt.bias", false)]),
        Join::renamed("linear_attn.A_log", &[("ssm_a", false)]).changed(Change::Decay),
        Join::split(
            "linear_attn.conv1d.weight",
            &[("ssm_conv1d.weight", false)],
            Dims::Convolution,
            super::join::whole,
        ),
        STACKED[0],
        STACKED[1],
    ],
    ..DELTA
};

pub(super) const QWEN35: Layout = Layout {
    architecture: "qwen35",
    model_types: &["qwen3_5_text"],
    class: "Qwen3_5ForCausalLM",
    inside: &[("post_attention_norm", "post_attention_layernorm")],
    without: &["ffn_norm"],
    joins: APART,
    say: with_sections,
    ..DELTA
};

pub(super) const QWEN35_MOE: Layout = Layout {
    architecture: "qwen35moe",
    model_types: &["qwen3_5_moe_text"],
    class: "Qwen3_5MoeForCausalLM",
    inside: &[
        ("post_attention_norm", "post_attention_layernorm"),
        (ROUTER, "mlp.gate"),
        SHARED[0],
        SHARED[1],
        SHARED[2],
        SHARED[3],
    ],
    without: &["ffn_norm", "ffn_gate", "ffn_up", "ffn_down"],
    experts: EXPERTS,
    joins: APART,
    say: with_sections,
    ..DELTA
};

const APART: &[Join] = &[
    Join::split("linear_attn.in_proj_qkv.weight", &[("attn_qkv.weight", false)], Dims::Same, behind_keys),
    Join::split("linear_attn.in_proj_z.weight", &[("attn_gate.weight", false)], Dims::Same, values),
    Join::split("linear_attn.in_proj_a.weight", &[("ssm_alpha.weight", false)], Dims::Same, heads),
    Join::split("linear_attn.in_proj_b.weight", &[("ssm_beta.weight", false)], Dims::Same, heads),
    Join::split("linear_attn.dt_bias", &[("ssm_dt.bias", false)], Dims::Same, heads),
    Join::split("linear_attn.A_log", &[("ssm_a", false)], Dims::Same, heads).changed(Change::Decay),
    Join::split("linear_attn.conv1d.weight", &[("ssm_conv1d.weight", false)], Dims::Convolution, behind_keys),
    Join::split("linear_attn.out_proj.weight", &[("ssm_out.weight", false)], Dims::Same, inputs),
    Join::renamed("linear_attn.norm.weight", &[("ssm_norm.weight", false)]),
    STACKED[0],
    STACKED[1],
];

/// Heads of the delta rule: keys, values that share one, and features of a key and of a value.
struct Heads {
    keys: usize,
    shared: usize,
    key: usize,
    value: usize,
}

impl Heads {
    fn of(counts: &Counts<'_>) -> Option<Self> {
        let (keys, values) = (counts.get("ssm.group_count")?, counts.get("ssm.time_step_rank")?);
        let (key, inner) = (counts.get("ssm.state_size")?, counts.get("ssm.inner_size")?);
        let fits =
            values.is_multiple_of(keys) && inner.is_multiple_of(values) && inner.max(key) <= 1 << 20 && keys <= 1 << 16;
        fits.then(|| Self { keys, shared: values / keys, key, value: inner / values })
    }

    /// Rows of values in the file's order, of so many features each, behind `first` others.
    fn tiled(&self, first: usize, features: usize) -> Option<Vec<usize>> {
        if self.shared == 1 {
            return None;
        }
        let heads = (0..self.shared).flat_map(|shared| (0..self.keys).map(move |key| key * self.shared + shared));
        let rows = heads.flat_map(|head| (0..features).map(move |row| first + head * features + row));
        Some((0..first).chain(rows).collect())
    }

    fn split(&self, rows: usize, first: usize, features: usize) -> Option<Split> {
        if rows != first + self.keys * self.shared * features {
            return None;
        }
        let Some(order) = self.tiled(first, features) else { return Some(Split::whole()) };
        Some(Split { rows: vec![rows], order: Order { rows: Some(order.into()), columns: None } })
    }
}

/// Of a matrix that has them key by key: all queries, keys and values, and all gates.
fn by_key(counts: &Counts<'_>, rows: usize) -> Option<Split> {
    let heads = Heads::of(counts)?;
    let values = heads.shared * heads.value;
    let each = 2 * heads.key + 2 * values;
    if rows != heads.keys * each {
        return None;
    }
    let parts = [(0, heads.key), (heads.key, heads.key), (2 * heads.key, values), (2 * heads.key + values, values)];
    let of_key = |(first, len): (usize, usize)| {
        (0..heads.keys).flat_map(move |key| key * each + first..key * each + first + len)
    };
    let order: Vec<usize> = parts.into_iter().flat_map(of_key).collect();
    let gates = heads.keys * values;
    Some(Split { rows: vec![rows - gates, gates], order: Order { rows: Some(order.into()), columns: None } })
}

fn behind_keys(counts: &Counts<'_>, rows: usize) -> Option<Split> {
    let heads = Heads::of(counts)?;
    heads.split(rows, 2 * heads.keys * heads.key, heads.value)
}

fn values(counts: &Counts<'_>, rows: usize) -> Option<Split> {
    let heads = Heads::of(counts)?;
    heads.split(rows, 0, heads.value)
}

fn heads(counts: &Counts<'_>, rows: usize) -> Option<Split> {
    Heads::of(counts)?.split(rows, 0, 1)
}

/// Of a matrix whose inputs are values.
fn inputs(counts: &Counts<'_>, _: usize) -> Option<Split> {
    let heads = Heads::of(counts)?;
    let columns = heads.tiled(0, heads.value).map(Into::into);
    Some(Split { rows: vec![1], order: Order { rows: None, columns } })
}

fn say(said: &mut Said, model: &Model<'_>) -> Result<()> {
    let fields = &model.fields;
    let count = |key: &str| fields.count(key);
    said.common(model)?;
    said.experts(model)?;
    said.count("ssm.conv_kernel", count("linear_conv_kernel_dim")?);
    said.count("ssm.state_size", count("linear_key_head_dim")?);
    said.count("ssm.group_count", count("linear_num_key_heads")?);
    let values = count("linear_num_value_heads")?;
    said.count("ssm.time_step_rank", values);
    said.count("ssm.inner_size", count("linear_value_head_dim")?.saturating_mul(values));
    let every = fields.positive_if("full_attention_interval")?.unwrap_or(4);
    let types = fields.by_layer("layer_types", model.layers)?;
    let is_linear = |layer: usize| match types.and_then(|types| types.get(layer)) {
        Some(kind) => kind == "linear_attention",
        None => !(layer + 1).is_multiple_of(every),
    };
    said.flags("attention.recurrent_layers", (0..model.layers).map(is_linear).collect());
    said.count("full_attention_interval", every);
    said.count("rope.dimension_count", model.turned_of_head()?);
    Ok(())
}

/// Qwen 3.5's rope turns features by three positions, which are one and the same for text.
fn with_sections(said: &mut Said, model: &Model<'_>) -> Result<()> {
    say(said, model)?;
    if model.rope.sections().is_none() {
        said.counts("rope.dimension_sections", &[11, 11, 10, 0]);
    }
    Ok(())
}
