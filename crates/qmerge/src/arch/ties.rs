//! Which tensors are one where a model ties its embeddings, and which families do so when their configuration does not say.
//!
//! Source: `_tied_weights_keys` and the configuration classes of transformers 5.23.

/// Modules whose weights are one tensor in a tied model: input embeddings first, the output embedding last.
#[derive(Debug)]
pub struct Tie {
    /// Module paths.
    pub members: &'static [&'static str],
}

impl Tie {
    const fn of(members: &'static [&'static str]) -> Self {
        Self { members }
    }

    /// The input embeddings.
    pub fn inputs(&self) -> &'static [&'static str] {
        self.members.split_last().map_or(&[], |(_, inputs)| inputs)
    }

    /// The output embedding.
    pub fn head(&self) -> &'static str {
        self.members.last().copied().unwrap_or("lm_head")
    }

    /// The head's bias and the tensor that it is while the model is tied: BERT's kin keep it beside the head.
    pub fn bias(&self) -> Option<(String, String)> {
        let apart = ["esm.", "gte."].iter().any(|family| self.members.iter().any(|member| member.starts_with(family)));
        let stem = self.head().strip_suffix(".decoder").filter(|_| !apart)?;
        Some((format!("{stem}.decoder.bias"), format!("{stem}.bias")))
    }
}

/// Of any family.
static TIES: &[Tie] = &[
    Tie::of(&["model.embed_tokens", "lm_head"]),
    Tie::of(&["model.language_model.embed_tokens", "lm_head"]),
    Tie::of(&["language_model.embed_tokens", "lm_head"]),
    Tie::of(&["language_model.model.embed_tokens", "language_model.lm_head"]),
    Tie::of(&["model.text_model.embed_tokens", "lm_head"]),
    Tie::of(&["embed_tokens", "lm_head"]),
    Tie::of(&["transformer.wte", "lm_head"]),
    Tie::of(&["wte", "lm_head"]),
    Tie::of(&["transformer.word_embeddings", "lm_head"]),
    Tie::of(&["word_embeddings", "lm_head"]),
    Tie::of(&["transformer.tokens_embed", "lm_head"]),
    Tie::of(&["transformer.w", "lm_head"]),
    Tie::of(&["transformer.word_embedding", "lm_loss"]),
    Tie::of(&["transformer.embeddings", "pred_layer.proj"]),
    Tie::of(&["gpt_neox.embed_in", "embed_out"]),
    Tie::of(&["gpt_neox_japanese.embed_in", "embed_out"]),
    Tie::of(&["backbone.embeddings", "lm_head"]),
    Tie::of(&["backbone.embedding", "lm_head"]),
    Tie::of(&["rwkv.embeddings", "head"]),
    Tie::of(&["model.tok_embeddings", "output"]),
    Tie::of(&["biogpt.embed_tokens", "output_projection"]),
    Tie::of(&["git.embeddings.word_embeddings", "output"]),
    Tie::of(&["model.embeddings.tok_embeddings", "decoder"]),
    Tie::of(&["model.text_model.embeddings.tok_embeddings", "lm_head"]),
    Tie::of(&["model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"]),
    Tie::of(&["led.shared", "led.encoder.embed_tokens", "led.decoder.embed_tokens", "lm_head"]),
    Tie::of(&["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]),
    Tie::of(&["model.decoder.embed_tokens", "lm_head"]),
    Tie::of(&["bert.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["deberta.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["ernie.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["fnet.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["layoutlm.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["mobilebert.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["mra.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["nomic_bert.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["nystromformer.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["roc_bert.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["roformer.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["tapas.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["transformer.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["visual_bert.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["yoso.embeddings.word_embeddings", "cls.predictions.decoder"]),
    Tie::of(&["roberta.embeddings.word_embeddings", "lm_head.decoder"]),
    Tie::of(&["roberta_prelayernorm.embeddings.word_embeddings", "lm_head.decoder"]),
    Tie::of(&["data2vec_text.embeddings.word_embeddings", "lm_head.decoder"]),
    Tie::of(&["esm.embeddings.word_embeddings", "lm_head.decoder"]),
    Tie::of(&["gte.embeddings.word_embeddings", "lm_head.decoder"]),
    Tie::of(&["longformer.embeddings.word_embeddings", "lm_head.decoder"]),
    Tie::of(&["mpnet.embeddings.word_embeddings", "lm_head.decoder"]),
    Tie::of(&["albert.embeddings.word_embeddings", "predictions.decoder"]),
    Tie::of(&["distilbert.embeddings.word_embeddings", "vocab_projector"]),
    Tie::of(&["electra.embeddings.word_embeddings", "generator_lm_head"]),
    Tie::of(&["convbert.embeddings.word_embeddings", "generator_lm_head"]),
    Tie::of(&["funnel.embeddings.word_embeddings", "lm_head"]),
];

/// The row of a model, told by the modules that it stores: the row whose first member is there, else one of which any input embedding is. The family's own
/// come before those of any.
pub fn find(model_type: &str, stored: impl Fn(&str) -> bool) -> Option<&'static Tie> {
    let rows = || super::find(model_type).ties.iter().chain(TIES);
    let inputs = |tie: &&Tie| tie.inputs().iter().any(|member| stored(member));
    rows().find(|tie| tie.members.first().is_some_and(|member| stored(member))).or_else(|| rows().find(inputs))
}

/// True if the configuration class ties the embeddings where the file does not say; `None` for a family that is not listed.
pub fn by_default(model_type: &str) -> Option<bool> {
    let listed = |families: &str| families.split(' ').any(|family| family == model_type);
    if listed(TIED_BY_DEFAULT) { Some(true) } else { listed(UNTIED_BY_DEFAULT).then_some(false) }
}

/// `model_type`s between spaces.
const TIED_BY_DEFAULT: &str = "albert aya_vision bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small \
    bloom camembert cohere cohere2 convbert ctrl data2vec-text deberta deberta-v2 distilbert electra ernie \
    ernie4_5 ernie4_5_moe esm falcon falcon_mamba fnet funnel gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text \
    got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox_japanese gte internvl kosmos-2 layoutlm led lfm2 lfm2_moe \
    longformer longt5 m2m_100 mamba marian mbart megatron-bert mistral3 mobilebert modernbert moonshine \
    mpnet mpt mra mt5 mvp nllb-moe nomic_bert nystromformer openai-gpt opt paligemma pegasus pegasus_x \
    plbart prophetnet recurrent_gemma roberta roberta-prelayernorm roc_bert roformer smollm3 speech_to_text \
    squeezebert starcoder2 switch_transformers t5 t5gemma tapas trocr umt5 visual_bert whisper xglm xlm \
    xlm-roberta xlm-roberta-xl xlnet xmod yoso zamba zamba2";

/// `model_type`s between spaces.
const UNTIED_BY_DEFAULT: &str = "arcee bamba chameleon codegen cwm dbrx deepseek_v2 deepseek_v3 dots1 exaone4 falcon_h1 flex_olmo glm \
    glm4 glm4_moe glm4_moe_lite glm4v gpt_neox gpt_oss gptj granite granitemoe granitemoehybrid granitemoeshared helium \
    hunyuan_v1_dense hunyuan_v1_moe idefics2 idefics3 internlm3 jamba llama llama4 llama4_text llava \
    llava_next llava_next_video llava_onevision mamba2 minimax minimax_m2 ministral mistral mixtral nemotron nemotron_h \
    olmo olmo2 olmo3 olmoe persimmon phi phi3 phi4_multimodal phimoe qwen2 qwen2_5_vl qwen2_moe qwen2_vl \
    qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen3_vl rwkv seed_oss smolvlm stablelm vipllava";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_finds_its_row_by_what_it_stores() {
        let row = |model_type: &str, stored: &[&str]| {
            find(model_type, |module| stored.contains(&module)).map(|tie| (tie.members[0], tie.head()))
        };
        assert_eq!(row("mamba", &["backbone.embeddings"]), Some(("backbone.embeddings", "lm_head")));
        assert_eq!(row("opt", &["model.decoder.embed_tokens"]), Some(("model.decoder.embed_tokens", "lm_head")));
        assert_eq!(row("whisper", &["model.decoder.embed_tokens"]), Some(("model.decoder.embed_tokens", "proj_out")));
        assert_eq!(row("bart", &["model.shared"]), Some(("model.shared", "lm_head")));
        assert_eq!(row("bart", &["model.encoder.embed_tokens"]), Some(("model.shared", "lm_head")));
        assert_eq!(row("bert", &["bert.embeddings.word_embeddings"]).unwrap().1, "cls.predictions.decoder");
        assert_eq!(row("llava", &["language_model.model.embed_tokens"]).unwrap().1, "language_model.lm_head");
        assert_eq!(row("unheard_of", &["trunk.table"]), None);
    }

    #[test]
    fn no_family_has_two_defaults() {
        let untied: Vec<&str> = UNTIED_BY_DEFAULT.split(' ').collect();
        for model_type in TIED_BY_DEFAULT.split(' ') {
            assert!(!model_type.is_empty() && !untied.contains(&model_type), "{model_type}");
        }
        assert_eq!(
            (by_default("gpt2"), by_default("llama"), by_default("unheard_of")),
            (Some(true), Some(false), None)
        );
    }
}
