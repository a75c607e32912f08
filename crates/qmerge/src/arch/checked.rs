//! Families whose linear layers are held to transformers' loader by a test.

/// `model_type`s between spaces.
const CHECKED: &str = "afmoe albert altclip apertus apertus1p5 apertus1p5_text arcee aria aria_text audio-spectrogram-transformer \
    audioflamingo3 axk1 axk2 aya_vision bailing_hybrid bamba bart beam beit bert bert-generation big_bird \
    bigbird_pegasus biogpt bitnet blenderbot blenderbot-small blip blip-2 bloom blt camembert canary clip codegen \
    cohere cohere2 cohere2_moe cohere2_vision cohere_asr convbert cosmos3_edge cosmos3_omni cpmant ctrl cwm \
    data2vec-text deberta deberta-v2 deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 deepseek_vl deepseek_vl_hybrid \
    deit dia diffllama dinov2 dinov2_with_registers dinov3_vit distilbert doge electra emu3_text_model \
    encoder-decoder ernie ernie4_5 ernie4_5_moe ernie4_5_vl_moe esmc eurobert evolla exaone4 exaone4_5 exaone_moe \
    falcon falcon_h1 falcon_mamba flaubert flex_olmo flint fnet fsmt fun_asr_nano funnel fuyu gemma gemma2 gemma3 \
    gemma3_text git glm glm4 glm46v glm4_moe glm4_moe_lite glm4v glm4v_moe glm5_next glm_moe_dsa glm_ocr glmasr \
    got_ocr2 gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_docling granite_speech \
    granite_speech_plus granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared gte helium hrm_text \
    hy_v3 hy_v4 hy_v4_vl hyperclovax hyperclovax_vision_v2 ibert idefics idefics2 idefics3 ijepa inkling_text \
    instructblip instructblipvideo internvl jais2 jamba janus jetmoe jina_embeddings_v3 kimi_linear kolibri1 \
    kosmos-2 kosmos-2.5 kyutai_speech_to_text lara_mini layoutlm led lfm2 lfm2_vl lfm3 lfm3_vl lighton_ocr llama \
    llama4 llama4_text llava llava_next llava_next_video llava_onevision longcat_flash longformer longt5 luke \
    m2m_100 mamba mamba2 marian mbart megatron-bert mellum mimo_v2_flash minicpm3 minicpm_ocr minicpmv4_6 \
    minicpmv4_7 minimax minimax_m2 minimax_m3_vl_text ministral3 mistral mistral3 mistral4 mixtral mllama \
    mllama_text_model mobilebert modernbert modernbert-decoder modernvbert moonshine moshi moss_transcribe_diarize \
    mpnet mpt mra mt5 muse_glimmer musicflamingo musicgen_decoder musicgen_melody_decoder mvp nanochat nemotron_h \
    nemotron_h_omni nllb-moe nomic_bert nystromformer olmo olmo2 olmo3 olmo_hybrid olmoe omniasr openai-gpt opt \
    ovis2 paddleocr_vl paligemma pegasus pegasus_x perceiver persimmon phi phi3 phi4_multimodal phimoe pi0 \
    pix2struct pixio plbart pop2piano pp_formulanet prophetnet qianfan_ocr qwen2 qwen2_5_omni_thinker qwen2_5_vl \
    qwen2_audio qwen2_moe qwen2_vl qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_asr qwen3_moe \
    qwen3_next qwen3_omni_moe_thinker qwen3_vl qwen3_vl_moe qwen4_exp qwen4_exp_text recurrent_gemma reformer \
    rembert roberta roberta-prelayernorm roc_bert roformer rwkv sapiens2 seamless_m4t seamless_m4t_v2 seed_oss segformer \
    smollm3 smolvlm solar_open speech-encoder-decoder speech_to_text speecht5 squeezebert stablelm starcoder2 swin \
    switch_transformers t5 t5gemma t5gemma2 tapas trocr udop ultrabert ultravbert umt5 unlimited_ocr vaultgemma \
    video_llama_3 video_llava vipllava vision-encoder-decoder vision-text-dual-encoder vit vit_mae vit_msn vivit \
    voxtral voxtral_realtime whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet xlstm xmod yoso youtu zaya";

/// True if a test holds what is quantized in models of that type to what the loader replaces.
pub(crate) fn is_checked(model_type: &str) -> bool {
    CHECKED.split(' ').any(|family| family == model_type)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// `tests/it/loaders/list.rs` holds the plan to every family in the file.
    #[test]
    fn they_are_the_families_of_the_file() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/loaders.jsonl");
        let text = std::fs::read_to_string(path).unwrap();
        let types: BTreeSet<String> = text
            .lines()
            .map(|line| {
                let case: serde_json::Value = serde_json::from_str(line).unwrap();
                case["config"]["model_type"].as_str().unwrap().to_owned()
            })
            .collect();
        let checked: BTreeSet<String> = super::CHECKED.split(' ').map(str::to_owned).collect();
        assert_eq!(types, checked);
    }
}
