//! Modules that a checkpoint calls otherwise than transformers does, once it has loaded it: an adapter says the latter.
//!
//! A row holds for models of its types, and for those that have one as a part. A path is the name of a module or the beginning of one below it, whole
//! components, wherever it stands; `*` is one component, the same in both. Source: transformers 5.24, the names of what models of these types save
//! against those they have; `testdata/loaders.jsonl` has their linear layers, and a test finds each of them by it.

use std::ops::Range;

/// A path in memory, and on disk.
type Move = (&'static str, &'static str);

const MOVED: &[(&[&str], &[Move])] = &[
    (
        &["audio-spectrogram-transformer", "beit", "deit", "ijepa", "pixio", "vit", "vit_mae", "vit_msn", "vivit"],
        &[
            ("layers.*.attention.q_proj", "encoder.layer.*.attention.attention.query"),
            ("layers.*.attention.k_proj", "encoder.layer.*.attention.attention.key"),
            ("layers.*.attention.v_proj", "encoder.layer.*.attention.attention.value"),
            ("layers.*.attention.o_proj", "encoder.layer.*.attention.output.dense"),
            ("layers.*.mlp.fc1", "encoder.layer.*.intermediate.dense"),
            ("layers.*.mlp.fc2", "encoder.layer.*.output.dense"),
        ],
    ),
    (
        &["audio-spectrogram-transformer", "beit", "deit", "ijepa", "vit", "vit_mae", "vit_msn", "vivit"],
        &[
            ("layers.*.layernorm_before", "encoder.layer.*.layernorm_before"),
            ("layers.*.layernorm_after", "encoder.layer.*.layernorm_after"),
        ],
    ),
    (
        &["pixio"],
        &[
            ("layers.*.layernorm_before", "encoder.layer.*.norm1"),
            ("layers.*.layernorm_after", "encoder.layer.*.norm2"),
        ],
    ),
    (
        &["dinov2", "dinov2_with_registers"],
        &[
            ("layer.*.attention.q_proj", "layer.*.attention.attention.query"),
            ("layer.*.attention.k_proj", "layer.*.attention.attention.key"),
            ("layer.*.attention.v_proj", "layer.*.attention.attention.value"),
            ("layer.*.attention.o_proj", "layer.*.attention.output.dense"),
            ("layer.*.mlp.down_proj", "layer.*.mlp.weights_out"),
        ],
    ),
    (&["dinov3_vit"], &[("model.layer.*", "layer.*")]),
    (
        &["swin"],
        &[
            ("blocks.*.attention.q_proj", "blocks.*.attention.self.query"),
            ("blocks.*.attention.k_proj", "blocks.*.attention.self.key"),
            ("blocks.*.attention.v_proj", "blocks.*.attention.self.value"),
            ("blocks.*.attention.o_proj", "blocks.*.attention.output.dense"),
            ("blocks.*.mlp.fc1", "blocks.*.intermediate.dense"),
            ("blocks.*.mlp.fc2", "blocks.*.output.dense"),
        ],
    ),
    (&["mask2former", "oneformer"], &[("pixel_level_module.encoder.swin", "pixel_level_module.encoder")]),
    (
        &["segformer"],
        &[
            ("stages.*.blocks.*.attention.q_proj", "encoder.block.*.*.attention.self.query"),
            ("stages.*.blocks.*.attention.k_proj", "encoder.block.*.*.attention.self.key"),
            ("stages.*.blocks.*.attention.v_proj", "encoder.block.*.*.attention.self.value"),
            ("stages.*.blocks.*.attention.o_proj", "encoder.block.*.*.attention.output.dense"),
            (
                "stages.*.blocks.*.attention.sequence_reduction.sequence_reduction",
                "encoder.block.*.*.attention.self.sr",
            ),
            (
                "stages.*.blocks.*.attention.sequence_reduction.layer_norm",
                "encoder.block.*.*.attention.self.layer_norm",
            ),
            ("stages.*.blocks.*.mlp.fc1", "encoder.block.*.*.mlp.dense1"),
            ("stages.*.blocks.*.mlp.fc2", "encoder.block.*.*.mlp.dense2"),
            ("stages.*.blocks.*.mlp.dwconv", "encoder.block.*.*.mlp.dwconv"),
            ("stages.*.blocks.*.layernorm_before", "encoder.block.*.*.layer_norm_1"),
            ("stages.*.blocks.*.layernorm_after", "encoder.block.*.*.layer_norm_2"),
            ("stages.*.patch_embeddings", "encoder.patch_embeddings.*"),
            ("stages.*.layer_norm", "encoder.layer_norm.*"),
            ("decode_head.linear_projections", "decode_head.linear_c"),
        ],
    ),
    (&["altclip"], &[("encoder.layers.*", "encoder.layer.*")]),
    (
        &["exaone"],
        &[
            ("model.embed_tokens", "transformer.wte"),
            ("model.layers.*.self_attn.o_proj", "transformer.h.*.attn.attention.out_proj"),
            ("model.layers.*.self_attn", "transformer.h.*.attn.attention"),
            ("model.layers.*.mlp.gate_proj", "transformer.h.*.mlp.c_fc_0"),
            ("model.layers.*.mlp.up_proj", "transformer.h.*.mlp.c_fc_1"),
            ("model.layers.*.mlp.down_proj", "transformer.h.*.mlp.c_proj"),
            ("model.layers.*.input_layernorm", "transformer.h.*.ln_1"),
            ("model.layers.*.post_attention_layernorm", "transformer.h.*.ln_2"),
            ("model.norm", "transformer.ln_f"),
        ],
    ),
    (&["gpt_neox"], &[("lm_head", "embed_out")]),
    (&["hy_v3"], &[("mlp.shared_experts", "mlp.shared_mlp"), ("mlp.gate", "mlp.router.gate")]),
    (
        &["glm5_next", "kimi_linear"],
        &[
            ("self_attn.forget_gate.f_a_proj", "self_attn.f_a_proj"),
            ("self_attn.forget_gate.f_b_proj", "self_attn.f_b_proj"),
        ],
    ),
    (&["kimi_linear"], &[("mlp", "block_sparse_moe")]),
    (&["laguna"], &[("mlp.shared_experts", "mlp.shared_expert")]),
    (&["timesfm2_5"], &[("mlp.fc1", "mlp.ff0"), ("mlp.fc2", "mlp.ff1")]),
    (&["lfm3_vl", "lfm3_vl_vision"], &[("patch_embed", "patchifier")]),
    (&["hyperclovax_vision_v2"], &[("model.projector", "model.vision_projector")]),
    (
        &["paddleocr_vl"],
        &[("model.language_model", "model"), ("model.projector", "mlp_AR"), ("model.visual", "visual")],
    ),
    (
        &["pi0"],
        &[
            ("model.vlm.language_model", "paligemma_with_expert.paligemma.model.language_model.model"),
            ("model.vlm", "paligemma_with_expert.paligemma.model"),
            ("model.dit", "paligemma_with_expert.gemma_expert.model"),
            ("embed_action_time.action_in_proj", "action_in_proj"),
            ("embed_action_time.state_proj", "state_proj"),
            ("embed_action_time.action_time_mlp_in", "action_time_mlp_in"),
            ("embed_action_time.action_time_mlp_out", "action_time_mlp_out"),
        ],
    ),
    (
        &["jina_embeddings_v3"],
        &[
            ("embeddings.LayerNorm", "emb_ln"),
            ("layers.*.self_attn.o_proj", "encoder.layers.*.mixer.out_proj"),
            ("layers.*.mlp", "encoder.layers.*.mlp"),
            ("layers.*.post_attention_layernorm", "encoder.layers.*.norm1"),
            ("layers.*.post_mlp_layernorm", "encoder.layers.*.norm2"),
        ],
    ),
    (
        &["nomic_bert"],
        &[
            ("embeddings.LayerNorm", "emb_ln"),
            ("layers.*.self_attn.o_proj", "encoder.layers.*.attn.out_proj"),
            ("layers.*.mlp.gate_proj", "encoder.layers.*.mlp.fc12"),
            ("layers.*.mlp.up_proj", "encoder.layers.*.mlp.fc11"),
            ("layers.*.mlp.down_proj", "encoder.layers.*.mlp.fc2"),
            ("layers.*.post_attention_layernorm", "encoder.layers.*.norm1"),
            ("layers.*.post_mlp_layernorm", "encoder.layers.*.norm2"),
        ],
    ),
    (
        &["gte"],
        &[
            ("layers.*.self_attn.o_proj", "encoder.layer.*.attention.o_proj"),
            ("layers.*.mlp.down_proj", "encoder.layer.*.mlp.down_proj"),
            ("layers.*.post_attention_layernorm", "encoder.layer.*.attn_ln"),
            ("layers.*.post_mlp_layernorm", "encoder.layer.*.mlp_ln"),
            ("lm_head.layer_norm", "lm_head.norm"),
        ],
    ),
    (
        &["cohere_asr"],
        &[
            ("encoder.subsampling.layers", "encoder.pre_encode.conv"),
            ("encoder.subsampling.linear", "encoder.pre_encode.out"),
            ("encoder.layers.*.self_attn.q_proj", "encoder.layers.*.self_attn.linear_q"),
            ("encoder.layers.*.self_attn.k_proj", "encoder.layers.*.self_attn.linear_k"),
            ("encoder.layers.*.self_attn.v_proj", "encoder.layers.*.self_attn.linear_v"),
            ("encoder.layers.*.self_attn.o_proj", "encoder.layers.*.self_attn.linear_out"),
            ("encoder.layers.*.self_attn.relative_k_proj", "encoder.layers.*.self_attn.linear_pos"),
            ("encoder.layers.*.conv.norm", "encoder.layers.*.conv.batch_norm"),
            ("decoder.embed_tokens", "transf_decoder._embedding.token_embedding"),
            ("decoder.embedding_layernorm", "transf_decoder._embedding.layer_norm"),
            ("decoder.pos_emb", "transf_decoder._embedding.position_embedding"),
            ("decoder.layers.*.self_attn.q_proj", "transf_decoder._decoder.layers.*.first_sub_layer.query_net"),
            ("decoder.layers.*.self_attn.k_proj", "transf_decoder._decoder.layers.*.first_sub_layer.key_net"),
            ("decoder.layers.*.self_attn.v_proj", "transf_decoder._decoder.layers.*.first_sub_layer.value_net"),
            ("decoder.layers.*.self_attn.o_proj", "transf_decoder._decoder.layers.*.first_sub_layer.out_projection"),
            ("decoder.layers.*.encoder_attn.q_proj", "transf_decoder._decoder.layers.*.second_sub_layer.query_net"),
            ("decoder.layers.*.encoder_attn.k_proj", "transf_decoder._decoder.layers.*.second_sub_layer.key_net"),
            ("decoder.layers.*.encoder_attn.v_proj", "transf_decoder._decoder.layers.*.second_sub_layer.value_net"),
            (
                "decoder.layers.*.encoder_attn.o_proj",
                "transf_decoder._decoder.layers.*.second_sub_layer.out_projection",
            ),
            ("decoder.layers.*.mlp.fc1", "transf_decoder._decoder.layers.*.third_sub_layer.dense_in"),
            ("decoder.layers.*.mlp.fc2", "transf_decoder._decoder.layers.*.third_sub_layer.dense_out"),
            ("decoder.layers.*.input_layernorm", "transf_decoder._decoder.layers.*.layer_norm_1"),
            ("decoder.layers.*.post_attention_layernorm", "transf_decoder._decoder.layers.*.layer_norm_2"),
            ("decoder.layers.*.final_layernorm", "transf_decoder._decoder.layers.*.layer_norm_3"),
            ("decoder.norm", "transf_decoder._decoder.final_layer_norm"),
            ("decoder.proj", "encoder_decoder_proj"),
            ("proj_out", "log_softmax.mlp.layer0"),
        ],
    ),
    (&["axk2"], &[("mlp.fc1", "W_down"), ("mlp.fc2", "W_up")]),
    (
        &["bailing_hybrid"],
        &[
            ("self_attn.o_proj", "attention.dense"),
            ("self_attn.forget_gate.f_proj", "attention.f_proj"),
            ("self_attn", "attention"),
        ],
    ),
    (
        &["cosmos3_edge", "cosmos3_omni"],
        &[
            ("model.language_model.layers.*.self_attn.q_proj", "layers.*.self_attn.to_q"),
            ("model.language_model.layers.*.self_attn.k_proj", "layers.*.self_attn.to_k"),
            ("model.language_model.layers.*.self_attn.v_proj", "layers.*.self_attn.to_v"),
            ("model.language_model.layers.*.self_attn.o_proj", "layers.*.self_attn.to_out"),
        ],
    ),
    (
        &["cosmos3_edge"],
        &[
            ("encoder.layers.*.self_attn.q_proj", "encoder.layers.*.self_attn.to_q"),
            ("encoder.layers.*.self_attn.k_proj", "encoder.layers.*.self_attn.to_k"),
            ("encoder.layers.*.self_attn.v_proj", "encoder.layers.*.self_attn.to_v"),
            ("encoder.layers.*.mlp.fc1", "encoder.layers.*.mlp.up_proj"),
            ("encoder.layers.*.mlp.fc2", "encoder.layers.*.mlp.down_proj"),
            ("model.language_model.layers.*.mlp.fc1", "layers.*.mlp.up_proj"),
            ("model.language_model.layers.*.mlp.fc2", "layers.*.mlp.down_proj"),
        ],
    ),
    (
        &["cosmos3_omni"],
        &[
            ("model.language_model.layers.*.mlp", "layers.*.mlp"),
            ("model.visual.blocks", "blocks"),
            ("model.visual.deepstack_merger_list", "deepstack_merger_list"),
            ("model.visual.merger", "merger"),
        ],
    ),
    (
        &["deepseek_v4"],
        &[
            ("lm_head", "head"),
            ("self_attn.q_a_proj", "attn.wq_a"),
            ("self_attn.q_b_proj", "attn.wq_b"),
            ("self_attn.kv_proj", "attn.wkv"),
            ("self_attn.o_a_proj", "attn.wo_a"),
            ("self_attn.o_b_proj", "attn.wo_b"),
            ("self_attn.compressor.gate_proj", "attn.compressor.wgate"),
            ("self_attn.compressor.kv_proj", "attn.compressor.wkv"),
            ("mlp.shared_experts.gate_proj", "ffn.shared_experts.w1"),
            ("mlp.shared_experts.up_proj", "ffn.shared_experts.w3"),
            ("mlp.shared_experts.down_proj", "ffn.shared_experts.w2"),
        ],
    ),
    (
        &["ernie4_5_vl_moe"],
        &[
            ("resampler_model.spatial_linear.fc1", "resampler_model.spatial_linear.0"),
            ("resampler_model.spatial_linear.fc2", "resampler_model.spatial_linear.2"),
            ("resampler_model.temporal_linear.fc1", "resampler_model.temporal_linear.0"),
            ("resampler_model.temporal_linear.fc2", "resampler_model.temporal_linear.2"),
            ("vision_tower", "vision_model"),
        ],
    ),
    (&["hrm_text"], &[("self_attn.o_proj", "attn.o_proj")]),
    (
        &["sarvam_moe"],
        &[
            ("embed_tokens", "word_embeddings"),
            ("self_attn.o_proj", "attention.dense"),
            ("self_attn.q_norm", "attention.query_layernorm"),
            ("self_attn.k_norm", "attention.key_layernorm"),
        ],
    ),
    (
        &["hy_v4", "hy_v4_vl"],
        &[
            ("mlp.gate_proj", "mlp.linear_gate"),
            ("mlp.shared_experts.gate_proj", "mlp.shared_experts.linear_gate"),
            ("self_attn.gate_proj", "self_attn.linear_gate"),
        ],
    ),
    (
        &["hy_v4_vl"],
        &[
            ("model.vision_tower.layers.*.mlp.fc1", "vit.layers.*.mlp.dense_h_to_4h"),
            ("model.vision_tower.layers.*.mlp.fc2", "vit.layers.*.mlp.dense_4h_to_h"),
            ("model.vision_tower", "vit"),
        ],
    ),
    (
        &["kyutai_speech_to_text"],
        &[
            ("codec_model.decoder.decoder_transformer", "codec_model.decoder_transformer"),
            ("codec_model.encoder.encoder_transformer", "codec_model.encoder_transformer"),
        ],
    ),
    (&["nemotron_h", "nemotron_h_omni"], &[("model.layers", "backbone.layers")]),
    (
        &["nemotron_h_omni"],
        &[
            ("multi_modal_projector.linear_1", "mlp1.1"),
            ("multi_modal_projector.linear_2", "mlp1.3"),
            ("embeddings.patch_projection", "radio_model.model.patch_generator.embedder"),
            ("embeddings.video_patch_projection", "radio_model.model.patch_generator.video_embedder"),
        ],
    ),
    (
        &["nemotron_h_omni", "radio"],
        &[
            ("encoder.layer.*.attention.o_proj", "radio_model.model.blocks.*.attn.proj"),
            ("encoder.layer.*", "radio_model.model.blocks.*"),
        ],
    ),
    (
        &["qianfan_ocr"],
        &[
            ("model.language_model.layers", "language_model.model.encoder.layers"),
            ("model.multi_modal_projector.linear_1", "mlp1.1"),
            ("model.multi_modal_projector.linear_2", "mlp1.3"),
            ("model.vision_tower.layers.*.attention.projection_layer", "vision_model.encoder.layers.*.attn.proj"),
            ("model.vision_tower.layers.*.mlp", "vision_model.encoder.layers.*.mlp"),
        ],
    ),
    (
        &["sapiens2"],
        &[
            ("model.layer.*.attention.q_proj", "blocks.*.attn.wq"),
            ("model.layer.*.attention.k_proj", "blocks.*.attn.wk"),
            ("model.layer.*.attention.v_proj", "blocks.*.attn.wv"),
            ("model.layer.*.attention.o_proj", "blocks.*.attn.proj"),
            ("model.layer.*.attention", "blocks.*.attn"),
            ("model.layer.*.mlp.down_proj", "blocks.*.ffn.w3"),
            ("model.layer.*.norm1", "blocks.*.ln1"),
            ("model.layer.*.norm2", "blocks.*.ln2"),
        ],
    ),
    (&["t5gemma2"], &[("model.encoder.text_model.layers", "model.encoder.layers")]),
    (&["ultrabert"], &[("head.decoder", "cls")]),
    (&["ultravbert"], &[("lm_head", "head.decoder"), ("projection_head", "head")]),
    (
        &["unlimited_ocr"],
        &[
            ("model.multi_modal_projector", "model.projector.layers"),
            ("model.vision_tower.sam_encoder.layers", "model.sam_model.blocks"),
            ("model.vision_tower.vision_encoder.encoder.layers", "model.vision_model.transformer.layers"),
        ],
    ),
    (
        &["vit_mae"],
        &[
            ("decoder.decoder_layers.*.attention.q_proj", "decoder.decoder_encoder.layer.*.attention.attention.query"),
            ("decoder.decoder_layers.*.attention.k_proj", "decoder.decoder_encoder.layer.*.attention.attention.key"),
            ("decoder.decoder_layers.*.attention.v_proj", "decoder.decoder_encoder.layer.*.attention.attention.value"),
            ("decoder.decoder_layers.*.attention.o_proj", "decoder.decoder_encoder.layer.*.attention.output.dense"),
            ("decoder.decoder_layers.*.mlp.fc1", "decoder.decoder_encoder.layer.*.intermediate.dense"),
            ("decoder.decoder_layers.*.mlp.fc2", "decoder.decoder_encoder.layer.*.output.dense"),
        ],
    ),
];

/// What a checkpoint calls what an adapter calls `name`; none if it calls it so. `parts` are the model's type, at an empty field, and those of the models
/// that it is made of, at theirs.
pub(crate) fn on_disk(parts: &[(&str, &str)], name: &str) -> Option<String> {
    apply(rows(parts, name), name, |(memory, disk)| (memory, disk))
}

/// What a model calls, once loaded, what its checkpoint calls `name`; none if it calls it so.
pub(crate) fn in_memory(parts: &[(&str, &str)], name: &str) -> Option<String> {
    apply(rows(parts, name).rev(), name, |(memory, disk)| (disk, memory))
}

/// The rows of the model, and of the part of it that a name is in.
fn rows<'r>(parts: &'r [(&str, &str)], name: &'r str) -> impl DoubleEndedIterator<Item = &'static [Move]> + use<'r> {
    MOVED.iter().filter(move |(types, _)| applies(parts, types, name)).map(|(_, moves)| *moves)
}

/// True if what holds for models of some types holds for a name of this one.
pub(super) fn applies(parts: &[(&str, &str)], types: &[&str], name: &str) -> bool {
    parts.iter().any(|(field, part)| types.contains(part) && is_in(field, name))
}

/// True for a name in the part that a field of the configuration describes: `vision_config` is of `vision_model` and `vision_tower`, a backbone stands anywhere.
fn is_in(field: &str, name: &str) -> bool {
    let stem = field.strip_suffix("_config").unwrap_or(field);
    let first = name.split('.').find(|part| *part != "model").unwrap_or_default();
    stem == "backbone" || first.starts_with(stem)
}

/// The name as one move of each row leaves it.
fn apply(rows: impl Iterator<Item = &'static [Move]>, name: &str, way: impl Fn(Move) -> Move) -> Option<String> {
    let mut moved: Option<String> = None;
    for row in rows {
        let name = moved.as_deref().unwrap_or(name);
        // What a row makes of names is not moved again.
        let longest = |path: fn(Move) -> &'static str| {
            row.iter().filter_map(|&one| Some(find(name, path(way(one)))?.len())).max().unwrap_or(0)
        };
        if longest(|(_, to)| to) > longest(|(from, _)| from) {
            continue;
        }
        if let Some(next) = row.iter().find_map(|&one| rename(name, way(one))) {
            moved = Some(next);
        }
    }
    moved
}

/// Which components of a name are like a path, where they first are.
fn find(name: &str, path: &str) -> Option<Range<usize>> {
    let parts: Vec<&str> = name.split('.').collect();
    let pattern: Vec<&str> = path.split('.').collect();
    let is_like = |window: &[&str]| window.iter().zip(&pattern).all(|(part, like)| *like == "*" || part == like);
    let at = parts.windows(pattern.len()).position(is_like)?;
    Some(at..at + pattern.len())
}

/// The name with the first path that is like `from` as `to` says.
pub(super) fn rename(name: &str, (from, to): Move) -> Option<String> {
    let place = find(name, from)?;
    let parts: Vec<&str> = name.split('.').collect();
    let (before, found, after) = (parts.get(..place.start)?, parts.get(place.clone())?, parts.get(place.end..)?);
    let mut any = found.iter().zip(from.split('.')).filter(|(_, like)| *like == "*").map(|(part, _)| *part);
    let new: Option<Vec<&str>> = to.split('.').map(|part| if part == "*" { any.next() } else { Some(part) }).collect();
    Some([before, &new?, after].concat().join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_known_in_both_directions() {
        for (types, moves) in MOVED {
            for (memory, disk) in *moves {
                let count = |path: &str| path.split('.').filter(|part| *part == "*").count();
                assert_eq!(count(memory), count(disk), "{memory}");
                let (memory, disk) =
                    (format!("a.{memory}.weight").replace('*', "7"), format!("a.{disk}.weight").replace('*', "7"));
                let parts: Vec<(&str, &str)> = types.iter().map(|model_type| ("", *model_type)).collect();
                assert_eq!(on_disk(&parts, &memory).as_deref(), Some(&*disk));
                assert_eq!(in_memory(&parts, &disk).as_deref(), Some(&*memory));
            }
        }
        assert_eq!(on_disk(&[("", "llama")], "model.layers.0.mlp.fc1.weight"), None);
    }
}
