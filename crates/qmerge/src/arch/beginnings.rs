//! How paths begin in models that see or hear, once transformers has loaded them, where their checkpoints begin them otherwise.
//!
//! An adapter is put on modules by their paths in memory, all of them. Source: transformers 5.24, as in [`moved`](super::moved): `testdata/loaders.jsonl` holds each row.

/// The beginning of a path in memory, and on disk.
type Beginning = (&'static str, &'static str);

const BEGINNINGS: &[(&[&str], &[Beginning])] = &[
    (
        &[
            "aria",
            "audioflamingo3",
            "aya_vision",
            "fuyu",
            "gemma3",
            "glmasr",
            "got_ocr2",
            "granite_speech",
            "granite_speech_plus",
            "internvl",
            "llava",
            "llava_next",
            "llava_next_video",
            "llava_onevision",
            "mistral3",
            "mllama",
            "musicflamingo",
            "paligemma",
            "qwen2_audio",
            "video_llava",
            "vipllava",
            "voxtral",
            "voxtral_realtime",
        ],
        &[
            ("model.language_model", "language_model.model"),
            ("lm_head", "language_model.lm_head"),
            ("model.audio_tower", "audio_tower"),
            ("model.encoder", "encoder"),
            ("model.image_tower", "image_tower"),
            ("model.multi_modal_projector", "multi_modal_projector"),
            ("model.projector", "projector"),
            ("model.video_tower", "video_tower"),
            ("model.vision_embed_tokens", "vision_embed_tokens"),
            ("model.vision_model", "vision_model"),
            ("model.vision_tower", "vision_tower"),
        ],
    ),
    (
        &[
            "ernie4_5_vl_moe",
            "hy_v4_vl",
            "paddleocr_vl",
            "qwen2_5_omni_thinker",
            "qwen2_5_vl",
            "qwen2_vl",
            "qwen3_omni_moe_thinker",
            "unlimited_ocr",
        ],
        &[
            ("model.language_model.embed_tokens", "model.embed_tokens"),
            ("model.language_model.layers", "model.layers"),
            ("model.language_model.norm", "model.norm"),
            ("model.audio_tower", "audio_tower"),
            ("model.visual", "visual"),
        ],
    ),
    (&["qianfan_ocr"], &[("lm_head", "language_model.lm_head")]),
    (&["dinov3_vit"], &[("model.layer", "layer")]),
    (&["ultrabert"], &[("model", "ultrabert")]),
];

/// A path as it begins in memory; none if it begins so. `model_type` is that of the whole model. A class without a head is what others have as their `model`.
pub(crate) fn begun(model_type: &str, is_headless: bool, name: &str) -> Option<String> {
    let rows = BEGINNINGS.iter().filter(|(types, _)| types.contains(&model_type));
    rows.flat_map(|(_, beginnings)| *beginnings).find_map(|(memory, disk)| {
        let memory = memory.strip_prefix("model.").filter(|_| is_headless).unwrap_or(memory);
        let rest = name.strip_prefix(disk)?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{memory}{rest}"))
    })
}
