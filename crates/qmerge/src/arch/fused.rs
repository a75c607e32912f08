//! Layers of a model in memory whose weights a checkpoint has in one tensor, one behind another.
//!
//! A row holds for models of its types, and for those that have one as a part, as those of [`super::moved`] do. Source: transformers 5.24, the operations
//! `Chunk` and `Split` of what it does to a checkpoint as it loads it. It splits values, not codes: a tensor of these that is quantized on disk does not load.
//! Those whose rows it also permutes (`PermuteForRope`) are not here: an adapter on such a layer is refused.

use std::ops::Range;

use super::moved::{applies, rename};

/// Layers that are one tensor on disk.
struct Fused {
    types: &'static [&'static str],
    /// Its path.
    disk: &'static str,
    /// Theirs, in the order of their rows.
    memory: &'static [&'static str],
    rows: Rows,
}

/// How many rows each layer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rows {
    /// All the same.
    Equal,
    /// Of queries, keys and values: by their heads.
    Heads,
    /// By what this version does not know: an adapter on such a layer is refused.
    Unknown,
}

const FUSED: &[Fused] = &[
    Fused {
        types: &["nomic_bert"],
        disk: "encoder.layers.*.attn.Wqkv",
        memory: &["layers.*.self_attn.q_proj", "layers.*.self_attn.k_proj", "layers.*.self_attn.v_proj"],
        rows: Rows::Equal,
    },
    Fused {
        types: &["jina_embeddings_v3"],
        disk: "encoder.layers.*.mixer.Wqkv",
        memory: &["layers.*.self_attn.q_proj", "layers.*.self_attn.k_proj", "layers.*.self_attn.v_proj"],
        rows: Rows::Equal,
    },
    Fused {
        types: &["gte"],
        disk: "encoder.layer.*.attention.qkv_proj",
        memory: &["layers.*.self_attn.q_proj", "layers.*.self_attn.k_proj", "layers.*.self_attn.v_proj"],
        rows: Rows::Equal,
    },
    Fused {
        types: &["gte"],
        disk: "encoder.layer.*.mlp.up_gate_proj",
        memory: &["layers.*.mlp.up_proj", "layers.*.mlp.gate_proj"],
        rows: Rows::Equal,
    },
    Fused {
        types: &["hrm_text"],
        disk: "layers.*.attn.gqkv_proj",
        memory: &[
            "layers.*.self_attn.gate_proj",
            "layers.*.self_attn.q_proj",
            "layers.*.self_attn.k_proj",
            "layers.*.self_attn.v_proj",
        ],
        rows: Rows::Equal,
    },
    Fused {
        types: &["hrm_text"],
        disk: "layers.*.mlp.gate_up_proj",
        memory: &["layers.*.mlp.gate_proj", "layers.*.mlp.up_proj"],
        rows: Rows::Equal,
    },
    Fused {
        types: &["dinov2", "dinov2_with_registers"],
        disk: "layer.*.mlp.weights_in",
        memory: &["layer.*.mlp.gate_proj", "layer.*.mlp.up_proj"],
        rows: Rows::Equal,
    },
    Fused {
        types: &["nemotron_h_omni", "radio"],
        disk: "radio_model.model.blocks.*.attn.qkv",
        memory: &[
            "encoder.layer.*.attention.q_proj",
            "encoder.layer.*.attention.k_proj",
            "encoder.layer.*.attention.v_proj",
        ],
        rows: Rows::Equal,
    },
    Fused {
        types: &["qianfan_ocr"],
        disk: "vision_model.encoder.layers.*.attn.qkv",
        memory: &[
            "model.vision_tower.layers.*.attention.q_proj",
            "model.vision_tower.layers.*.attention.k_proj",
            "model.vision_tower.layers.*.attention.v_proj",
        ],
        rows: Rows::Equal,
    },
    Fused {
        types: &["unlimited_ocr"],
        disk: "model.vision_model.transformer.layers.*.self_attn.qkv_proj",
        memory: &[
            "model.vision_tower.vision_encoder.encoder.layers.*.self_attn.q_proj",
            "model.vision_tower.vision_encoder.encoder.layers.*.self_attn.k_proj",
            "model.vision_tower.vision_encoder.encoder.layers.*.self_attn.v_proj",
        ],
        rows: Rows::Equal,
    },
    Fused {
        types: &["sapiens2"],
        disk: "blocks.*.ffn.w12",
        memory: &["model.layer.*.mlp.gate_proj", "model.layer.*.mlp.up_proj"],
        rows: Rows::Equal,
    },
    Fused {
        types: &["sarvam_moe"],
        disk: "layers.*.attention.query_key_value",
        memory: &["layers.*.self_attn.q_proj", "layers.*.self_attn.k_proj", "layers.*.self_attn.v_proj"],
        rows: Rows::Heads,
    },
    Fused {
        types: &["lara_mini"],
        disk: "layers.*.linear_attn.in_proj",
        memory: &[
            "layers.*.linear_attn.in_proj_qkv",
            "layers.*.linear_attn.in_proj_z",
            "layers.*.linear_attn.in_proj_b",
            "layers.*.linear_attn.in_proj_a",
        ],
        rows: Rows::Unknown,
    },
    Fused {
        types: &["axk2"],
        disk: "layers.*.self_attn.q_b_proj",
        memory: &["layers.*.self_attn.q_b_proj", "layers.*.self_attn.q_gate_proj"],
        rows: Rows::Unknown,
    },
];

/// The same of layers that only other programs have: llama.cpp those of Granite in place of Granite 4's, after which its adapters name their factors.
const APART: &[Fused] = &[
    Fused {
        types: &["granitemoehybrid"],
        disk: "layers.*.shared_mlp.input_linear",
        memory: &["layers.*.mlp.gate_proj", "layers.*.mlp.up_proj"],
        rows: Rows::Equal,
    },
    Fused {
        types: &["granitemoehybrid"],
        disk: "layers.*.shared_mlp.output_linear",
        memory: &["layers.*.mlp.down_proj"],
        rows: Rows::Equal,
    },
];

/// The layers of a module on disk, by their names in memory; none of one that is a layer itself. `parts` are the model's types, as in [`super::on_disk`].
pub(crate) fn layers(parts: &[(&str, &str)], module: &str) -> Option<Vec<String>> {
    let fused = FUSED.iter().filter(|fused| applies(parts, fused.types, module));
    fused.filter_map(|fused| fused.memory.iter().map(|memory| rename(module, (fused.disk, memory))).collect()).next()
}

/// A layer that is some rows of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FusedLayer {
    /// The tensor's name.
    pub(crate) tensor: String,
    /// How many layers come before it, and how many there are.
    pub(crate) number: usize,
    pub(crate) count: usize,
    rows: Rows,
}

impl FusedLayer {
    /// The layer of this name; none if it has a tensor of its own. `parts` are the model's types, as in [`super::on_disk`].
    pub(crate) fn find(parts: &[(&str, &str)], name: &str) -> Option<Self> {
        let known = FUSED.iter().chain(APART).filter(|fused| fused.rows != Rows::Unknown);
        known.filter(|fused| applies(parts, fused.types, name)).find_map(|fused| {
            fused.memory.iter().enumerate().find_map(|(number, memory)| {
                let tensor = rename(name, (memory, fused.disk))?;
                Some(Self { tensor, number, count: fused.memory.len(), rows: fused.rows })
            })
        })
    }

    /// True if its rows are told by the model's heads.
    pub(crate) fn goes_by_heads(&self) -> bool {
        self.rows == Rows::Heads
    }

    /// Its rows among those of the tensor, given the model's heads of queries and of keys; none if they do not divide.
    pub(crate) fn rows(&self, all: usize, heads: Option<(usize, usize)>) -> Option<Range<usize>> {
        let shares = match self.rows {
            Rows::Equal => vec![1; self.count],
            Rows::Heads => heads.map(|(queries, keys)| vec![queries, keys, keys])?,
            Rows::Unknown => return None,
        };
        let total = shares.iter().try_fold(0_usize, |sum, share| sum.checked_add(*share))?;
        let each = all.checked_div(total).filter(|each| each * total == all)?;
        let before: usize = shares.iter().take(self.number).sum();
        Some(before * each..(before + shares.get(self.number)?) * each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_layers_follow_each_other() {
        let parts = [("", "sarvam_moe")];
        let rows = |leaf: &str| {
            let part = FusedLayer::find(&parts, &format!("model.layers.7.self_attn.{leaf}.weight")).unwrap();
            assert_eq!(part.tensor, "model.layers.7.attention.query_key_value.weight");
            part.rows(96, Some((4, 2))).unwrap()
        };
        assert_eq!(["q_proj", "k_proj", "v_proj"].map(rows), [0..48, 48..72, 72..96]);
        let part = FusedLayer::find(&parts, "model.layers.7.self_attn.q_proj.weight").unwrap();
        assert_eq!((part.rows(97, Some((4, 2))), part.rows(96, Some((0, 0))), part.rows(96, None)), (None, None, None));
        let all = layers(&parts, "model.layers.7.attention.query_key_value").unwrap();
        assert_eq!(all, ["q_proj", "k_proj", "v_proj"].map(|leaf| format!("model.layers.7.self_attn.{leaf}")));
        assert_eq!(layers(&parts, "model.layers.7.attention.dense"), None);
        assert_eq!(FusedLayer::find(&[("", "lara_mini")], "model.layers.0.linear_attn.in_proj_z.weight"), None);
        let part = FusedLayer::find(&[("", "gte")], "layers.0.mlp.gate_proj.weight").unwrap();
        assert_eq!(part.rows(112, None), Some(56..112));
        assert_eq!(FusedLayer::find(&[("", "llama")], "model.layers.7.self_attn.q_proj.weight"), None);
    }
}
