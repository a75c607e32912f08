//! Which matrices are linear layers, told by their names: what loaders replace by quantized layers, and what they do not.
//!
//! The rule is positive: a matrix whose name is none of these stays plain. Source: `torch.nn.Linear` and `Conv1D` modules of transformers 5, family by
//! family, and what its bitsandbytes quantizer leaves out; `testdata/loaders.jsonl` has them, and a test holds the rule to every family in it.

/// Last components of modules that are linear layers, and never anything else, in the families that were looked at; the last two where the last is a number.
const LINEAR: &str = "W_down W_up Wi Wk Wo Wq Wqkv Wv a_proj acoustic_linear_1 acoustic_linear_2 attention_out b_proj conv_kernel_layer conv_out_layer \
    dense dense1 dense2 dense_4h_to_h dense_h_to_4h dense_in dense_out down_proj down_proj_for_speech down_proj_for_vision_speech \
    dt_proj e2e_query e2w_query embedding_hidden_mapping_in embedding_transformation embeddings_project enc_to_dec_proj \
    encoder_decoder_proj encoder_proj entity_embedding_dense f_a_proj f_b_proj f_proj fc0 fc1 fc11 fc12 fc2 fc_in fc_out ffn ffn.0 \
    ffn.2 ffn_output fgate_preact g_a_proj g_b_proj g_proj gate_attn gate_proj gate_up_proj gqkv_proj head_linear hidden_layers.0 \
    high_res_vision_proj igate_preact image_projection img_projection_down img_projection_up in_proj in_proj_a in_proj_b in_proj_ba \
    in_proj_qkv in_proj_qkvz in_proj_z input_linear intermediate_dense k k_head k_lin k_proj key key_global key_net key_proj \
    key_protein kv_a_proj_with_mqa kv_b_proj kv_proj language_projection lin1 lin2 linear linear1 linear2 linear_1 linear_2 linear_fc1 \
    linear_fc2 linear_gate linear_in linear_k linear_out linear_pos linear_q linear_v linear_x linear_y map_inputs_layer merging_layer \
    mlp.0 mlp.2 mlp1.1 mlp1.3 mlp_fc2 modality_projection multi_modal_projector multimodal_projector net.0 net.3 o o_proj ogate_preact \
    out out_lin out_mid out_proj out_projection output_dense output_gate output_linear patch_embedding patch_embedding_projection \
    patch_projection patchifier pooler post_proj pre_classifier proj proj.0 proj.2 proj1 proj2 proj_down proj_in proj_up proj_up_gate \
    project_in project_k project_out project_q project_v projection projection_layer protein_projector q q_a_proj q_b_proj q_head \
    q_lin q_proj qkv qkv_proj query query_global query_key query_key_value query_net query_proj r_proj readout.0 readout.2 receptance \
    relative_k_proj semantic_linear_1 semantic_linear_2 shared_expert_gate spatial_linear.0 spatial_linear.2 temporal_linear.0 \
    temporal_linear.2 to_k to_kv to_out to_q to_v token_embedding_projection up_gate_proj up_proj up_proj_for_speech \
    up_proj_for_vision_speech v v_lin v_proj v_proj_current v_proj_delayed value value_global value_net value_proj value_protein \
    vision_head vision_proj vision_projection vision_projector visual_projection visual_projection.0 vit_large_projector \
    vocab_transform w1 w2 w2e_query w3 w_0 w_1 w_out w_qkv wi wi_0 wi_1 wk wk_dv wkv wo wo_b wo_ud wq wq_a wq_b wq_du wqkv wr_du wv \
    wv_dv x_proj";

/// The same, where other families have something else by that name.
const LINEAR_OF: &[(&[&str], &[&str])] = &[
    // Elsewhere Conv1D, which is stored (in, out).
    (&["gpt_bigcode", "starcoder2"], &["c_attn", "c_proj", "c_fc"]),
    (&["altclip"], &["transformation"]),
    (&["apertus1p5"], &["embedding"]),
    (&["ernie4_5_vl_moe"], &["mlp"]),
    (&["funnel"], &["v_head"]),
    (&["fuyu"], &["vision_embed_tokens"]),
    (&["hy_v4", "hy_v4_vl"], &["weights_proj"]),
    (&["janus"], &["proj_out"]),
    (&["nemotron_h_omni"], &["embedder", "video_embedder"]),
    (&["pi0"], &["action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out", "state_proj"]),
    (&["prophetnet"], &["intermediate", "output", "relative_pos_embeddings"]),
    (&["qwen3_omni_moe", "qwen3_omni_moe_thinker", "qwen3_asr"], &["conv_out"]),
    (&["qwen4_exp", "qwen4_exp_text"], &["input_mix_weight_down", "input_mix_weight_up", "block_inject_weight"]),
    (&["rwkv", "led", "bigbird_pegasus", "pix2struct", "kosmos-2.5"], &["output"]),
    (&["sapiens2"], &["wq", "wk", "wv", "w3", "w12"]),
    (&["swin"], &["reduction"]),
    (&["unlimited_ocr"], &["layers"]),
    (&["vit_mae"], &["decoder_embed", "decoder_pred"]),
    (&["xlnet"], &["layer_1", "layer_2"]),
];

/// Ends of module paths that no loader takes for a linear layer, by whatever name, with the families; none for any.
const PLAIN: &[(&[&str], &[&str])] = &[
    // Linear layers of classes of their own, which no loader replaces.
    (&["falcon", "ibert"], &["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "query", "key", "value"]),
    // Parts of torch's MultiheadAttention.
    (&[], &["head.attention.out_proj", "multihead_attn.out_proj"]),
    // A layer multiplies with their weights itself, which are codes then: loaders replace them, and cannot run the model.
    (&["mamba", "falcon_mamba", "jamba"], &["dt_proj"]),
    (&["reformer"], &["query_key", "query", "key", "value"]),
    // Kept in 32 bits (`_keep_in_fp32_modules`).
    (&["t5", "mt5", "umt5", "udop", "pop2piano"], &["DenseReluDense.wo"]),
    (&["deepseek_v32", "glm_moe_dsa", "axk2", "mistral_large4"], &["indexer.weights_proj"]),
];

/// Components of paths of modules that loaders keep in 32 bits as a whole.
const PLAIN_WITHIN: &[(&[&str], &str)] = &[(&["blip-2"], "qformer"), (&["deepseek_v4"], "compressor")];

/// Output embeddings by the names that loaders have for them in memory, where neither the disk nor what is tied says it.
const HEADS_IN_MEMORY: &[(&[&str], &str)] = &[
    (&["blip", "encoder-decoder", "vision-encoder-decoder", "speech-encoder-decoder"], "cls.predictions.decoder"),
    (&["cohere_asr"], "proj_out"),
    (&["luke"], "entity_predictions.decoder"),
    (&["ultrabert"], "head.decoder"),
];

/// Components of heads of classifiers and of sequences, and of heads that are more than one matrix: they stay as they are, whatever a loader would do.
const HEADS: &[&str] = &[
    "lm_head",
    "cls",
    "pred_layer",
    "text_projection",
    "contact_head",
    "score",
    "classifier",
    "qa_outputs",
    "seq_relationship",
    "summary",
    "pre_classifier",
    "classification_head",
];

/// Components of routers: linear in their arithmetic, but bare tensors to a loader, or layers that it keeps.
const ROUTERS: &[&str] = &["router", "gate"];

/// What a two-dimensional weight is to a loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A linear layer that a loader would quantize.
    Linear,
    /// A table of embeddings.
    Embedding,
    /// An output embedding.
    Head,
    /// A matrix that stays plain, and must be named where a loader is told what stays so.
    Plain,
    /// The same, by a name that says nothing.
    Unknown,
}

/// The role of the module at that path, in a model of these types (its own, and its parts').
pub(crate) fn role(families: &[&str], module: &str) -> Role {
    let any = |of: &[&str]| of.is_empty() || of.iter().any(|family| families.contains(family));
    let part_of = |names: &[&str]| module.split('.').any(|part| names.contains(&part));
    let plain = PLAIN.iter().any(|(of, ends)| any(of) && ends.iter().any(|end| ends_with(module, end)))
        || PLAIN_WITHIN.iter().any(|(of, part)| any(of) && part_of(&[part]));
    if plain || part_of(HEADS) || part_of(ROUTERS) || is_expert(module) {
        return Role::Plain;
    }
    let leaf = leaf(module);
    let known = LINEAR.split(' ').any(|name| name == leaf)
        || LINEAR_OF.iter().any(|(of, leaves)| any(of) && leaves.contains(&leaf));
    if known { Role::Linear } else { Role::Unknown }
}

/// What a model of that type calls its output embedding in memory, where nothing else says it.
pub(crate) fn head_in_memory(model_type: &str) -> Option<&'static str> {
    HEADS_IN_MEMORY.iter().find(|(of, _)| of.contains(&model_type)).map(|(_, head)| *head)
}

/// True for a matrix of one of many numbered experts: loaders stack them into bare tensors.
fn is_expert(module: &str) -> bool {
    module.split_once("experts.").is_some_and(|(_, rest)| rest.starts_with(|first: char| first.is_ascii_digit()))
}

/// True if the path ends with these components.
fn ends_with(module: &str, end: &str) -> bool {
    module.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The last component; the last two where the last is a number.
fn leaf(module: &str) -> &str {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut ends = module.rmatch_indices('.').filter_map(|(at, _)| module.get(at + 1..));
    match ends.next() {
        Some(last) if is_number(last) => ends.next().unwrap_or(module),
        Some(last) => last,
        None => module,
    }
}
