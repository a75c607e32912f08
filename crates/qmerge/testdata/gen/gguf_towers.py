"""Tiny random models that see, for gguf_files.py: what llama.cpp makes a file of is their language model. Classes and names are transformers' own, fields of config.json those of published models."""

import json

import torch
import transformers
from safetensors.torch import load_file, save_file

import gguf_families
import gguf_gemma
import gguf_mixtures

SIGLIP = dict(model_type="siglip_vision_model", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)
OF_GEMMA4 = dict(model_type="gemma4_vision", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=8, patch_size=4, pooling_kernel_size=1, position_embedding_size=4)
PIXTRAL = dict(model_type="pixtral", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8, image_size=16, patch_size=4)
OF_LLAMA4 = dict(model_type="llama4_vision_model", hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4, vision_output_dim=16, projector_input_dim=16, projector_output_dim=16)
OF_QWEN35 = dict(model_type="qwen3_5", depth=1, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=4, out_hidden_size=32, num_position_embeddings=16)

CLIP = dict(model_type="clip_vision_model", hidden_size=16, intermediate_size=16, projection_dim=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4, vocab_size=32000)
OF_QWEN2VL = dict(depth=1, embed_dim=16, hidden_size=32, mlp_ratio=1, num_heads=2, in_chans=3, patch_size=4, spatial_merge_size=2, spatial_patch_size=4, temporal_patch_size=2)
OF_QWEN25VL = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=4, out_hidden_size=32, fullatt_block_indexes=[0], window_size=8)
OF_QWEN3VL = dict(depth=2, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=4, out_hidden_size=32, num_position_embeddings=16, deepstack_visual_indexes=[0, 1])
OF_INTERNVL = dict(model_type="internvl_vision", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=[16, 16], patch_size=[4, 4], architectures=["InternVLVisionModel"])
OF_IDEFICS3 = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)
OF_SIGLIP2 = dict(model_type="siglip2_vision_model", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_patches=16, patch_size=4)
OF_GLM4V = dict(model_type="glm4v_vision", depth=1, hidden_size=16, intermediate_size=32, num_heads=2, image_size=16, patch_size=4, out_hidden_size=32, attention_bias=False)

# What published text_configs leave out is left out here too.
GEMMA3 = dict(model_type="gemma3_text", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32, sliding_window=128, query_pre_attn_scalar=32, rope_scaling={"factor": 8.0, "rope_type": "linear"})
MISTRAL = dict(gguf_families.TWO_LAYERS, model_type="mistral", head_dim=16, rms_norm_eps=1e-5, rope_theta=1000000000.0, sliding_window=None, hidden_act="silu")
LLAMA4 = {key: value for key, value in gguf_mixtures.MIXTURES["llama4"][1].items() if key != "tie_word_embeddings"}
QWEN35 = gguf_mixtures.MIXTURES["qwen35"][1]
MINISTRAL3 = gguf_families.FAMILIES["ministral3"][1]
SMALL = {key: value for key, value in gguf_mixtures.TWO.items() if key != "tie_word_embeddings"}
LLAMA = dict(SMALL, model_type="llama", architectures=["LlamaForCausalLM"])
QWEN2 = dict(SMALL, model_type="qwen2", architectures=["Qwen2ForCausalLM"], rope_theta=1000000.0, rms_norm_eps=1e-6, use_sliding_window=False, sliding_window=128, max_window_layers=2)
QWEN3 = dict(SMALL, model_type="qwen3", architectures=["Qwen3ForCausalLM"], head_dim=16, rope_theta=1000000.0, rms_norm_eps=1e-6)
IDS = dict(image_token_id=4, video_token_id=5, vision_start_token_id=6, vision_end_token_id=7)
QWEN2VL = dict(SMALL, rope_theta=1000000.0, rms_norm_eps=1e-6, use_sliding_window=False, sliding_window=128, max_window_layers=2, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]})
QWEN3VL = dict(SMALL, model_type="qwen3_vl_text", head_dim=16, rope_theta=5000000.0, rms_norm_eps=1e-6, attention_bias=False, rope_scaling={"mrope_interleaved": True, "mrope_section": [3, 3, 2], "rope_type": "default"})
QWEN3VLMOE = dict(QWEN3VL, model_type="qwen3_vl_moe_text", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[])
QWEN3MOE = dict(QWEN3, model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[])
LFM2 = dict({key: value for key, value in gguf_families.FAMILIES["lfm2"][1].items() if key != "tie_embedding"}, architectures=["Lfm2ForCausalLM"])
GLM4VMOE = dict({key: value for key, value in gguf_mixtures.MIXTURES["glm4moe"][1].items() if key != "tie_word_embeddings"}, model_type="glm4v_moe_text", use_qk_norm=False, rope_scaling={"type": "default", "mrope_section": [2, 1, 1]})

# The class, what the configuration says outside and of the language model, and the tokenizer: the rule's name, and the expression that it cuts by.
TOWERS = {
    "gemma3sees": ("Gemma3ForConditionalGeneration", dict(model_type="gemma3", mm_tokens_per_image=4, vision_config=SIGLIP, boi_token_index=4, eoi_token_index=5, image_token_index=6), GEMMA3, None, None),
    "gemma4sees": ("Gemma4ForConditionalGeneration", dict(model_type="gemma4", audio_config=None, vision_config=OF_GEMMA4, vision_soft_tokens_per_image=4, tie_word_embeddings=True), gguf_gemma.GEMMAS["gemma4"][1], None, None),
    "mistral3sees": ("Mistral3ForConditionalGeneration", dict(model_type="mistral3", tie_word_embeddings=False, vision_config=PIXTRAL, spatial_merge_size=2, vision_feature_layer=-1, projector_hidden_act="gelu", image_token_index=10, multimodal_projector_bias=False), MISTRAL, "tekken", gguf_families.WORDS),
    "ministral3sees": ("Mistral3ForConditionalGeneration", dict(model_type="mistral3", vision_config=PIXTRAL, spatial_merge_size=2, vision_feature_layer=-1, projector_hidden_act="gelu", image_token_index=10, multimodal_projector_bias=False), MINISTRAL3, "tekken", gguf_families.WORDS),
    "llama4sees": ("Llama4ForConditionalGeneration", dict(model_type="llama4", vision_config=OF_LLAMA4, boi_token_index=4, eoi_token_index=5, image_token_index=6, tie_word_embeddings=False), LLAMA4, "llama4", gguf_mixtures.OF_GPT4O),
    "qwen35sees": ("Qwen3_5ForConditionalGeneration", dict(model_type="qwen3_5", vision_config=OF_QWEN35, tie_word_embeddings=False, image_token_id=4, video_token_id=5, vision_start_token_id=6, vision_end_token_id=7), QWEN35, "qwen35", gguf_mixtures.OF_QWEN35),
    "gemma3nsees": ("Gemma3nForConditionalGeneration", dict(model_type="gemma3n"), gguf_gemma.GEMMAS["gemma3n"][1], None, None),
    "qwen2vlsees": ("Qwen2VLForConditionalGeneration", dict(model_type="qwen2_vl", tie_word_embeddings=True, vision_config=OF_QWEN2VL, **IDS), QWEN2VL, "qwen2", gguf_mixtures.OF_QWEN),
    "qwen25vlsees": ("Qwen2_5_VLForConditionalGeneration", dict(model_type="qwen2_5_vl", tie_word_embeddings=False, vision_config=OF_QWEN25VL, **IDS), dict(QWEN2VL, model_type="qwen2_5_vl_text"), "qwen2", gguf_mixtures.OF_QWEN),
    "qwen3vlsees": ("Qwen3VLForConditionalGeneration", dict(model_type="qwen3_vl", tie_word_embeddings=False, vision_config=dict(OF_QWEN3VL, model_type="qwen3_vl"), **IDS), QWEN3VL, "qwen2", gguf_mixtures.OF_QWEN),
    "qwen3vlmoesees": ("Qwen3VLMoeForConditionalGeneration", dict(model_type="qwen3_vl_moe", tie_word_embeddings=False, vision_config=dict(OF_QWEN3VL, model_type="qwen3_vl_moe"), **IDS), QWEN3VLMOE, "qwen2", gguf_mixtures.OF_QWEN),
    "llavasees": ("LlavaForConditionalGeneration", dict(model_type="llava", tie_word_embeddings=False, vision_config=CLIP, image_token_index=5, projector_hidden_act="gelu", vision_feature_layer=-1, vision_feature_select_strategy="default"), LLAMA, None, None),
    "llavanextsees": ("LlavaNextForConditionalGeneration", dict(model_type="llava_next", tie_word_embeddings=False, vision_config=CLIP, image_token_index=5, image_grid_pinpoints=[[16, 32]]), dict(MISTRAL, architectures=["MistralForCausalLM"]), None, None),
    "llavaonevisionsees": ("LlavaOnevisionForConditionalGeneration", dict(model_type="llava_onevision", tie_word_embeddings=False, vision_config=SIGLIP, image_token_index=5, video_token_index=6, image_grid_pinpoints=[[16, 32]]), QWEN2, "qwen2", gguf_mixtures.OF_QWEN),
    "internvlsees": ("InternVLForConditionalGeneration", dict(model_type="internvl", tie_word_embeddings=False, vision_config=OF_INTERNVL, image_token_id=5), QWEN3, "qwen2", gguf_mixtures.OF_QWEN),
    "idefics3sees": ("Idefics3ForConditionalGeneration", dict(model_type="idefics3", tie_word_embeddings=False, vision_config=dict(OF_IDEFICS3, model_type="idefics3_vision"), image_token_id=5, scale_factor=2), dict(LLAMA, architectures=["VLlama3ForCausalLM"]), "llama-bpe", gguf_mixtures.THREE_DIGITS),
    "smolvlmsees": ("SmolVLMForConditionalGeneration", dict(model_type="smolvlm", tie_word_embeddings=True, vision_config=dict(OF_IDEFICS3, model_type="smolvlm_vision"), image_token_id=5, scale_factor=2), dict(LLAMA, architectures=["VLlama3ForCausalLM"]), "smollm", gguf_mixtures.GPT2),
    "internvlmoesees": ("InternVLForConditionalGeneration", dict(model_type="internvl", tie_word_embeddings=False, vision_config=OF_INTERNVL, image_token_id=5), QWEN3MOE, "qwen2", gguf_mixtures.OF_QWEN),
    "llavanextvideosees": ("LlavaNextVideoForConditionalGeneration", dict(model_type="llava_next_video", tie_word_embeddings=False, vision_config=CLIP, image_token_index=5, video_token_index=6, image_grid_pinpoints=[[16, 32]]), LLAMA, None, None),
    "lfm2vlsees": ("Lfm2VlForConditionalGeneration", dict(model_type="lfm2_vl", tie_word_embeddings=True, vision_config=OF_SIGLIP2, image_token_id=5, projector_hidden_size=16, downsample_factor=2), LFM2, "lfm2", gguf_mixtures.THREE_DIGITS),
    "lightonocrsees": ("LightOnOcrForConditionalGeneration", dict(model_type="lighton_ocr", tie_word_embeddings=False, vision_config=PIXTRAL, image_token_id=5, spatial_merge_size=2), QWEN3, "qwen2", gguf_mixtures.OF_QWEN),
    "voxtralhears": ("VoxtralForConditionalGeneration", dict(model_type="voxtral", tie_word_embeddings=False, audio_config=dict(model_type="voxtral_encoder", hidden_size=16, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_mel_bins=8, max_source_positions=16), audio_token_id=5, projector_hidden_act="gelu"), dict(LLAMA, head_dim=8, rope_theta=100000000.0), "tekken", gguf_families.WORDS),
    "qwen2audiohears": ("Qwen2AudioForConditionalGeneration", dict(model_type="qwen2_audio", tie_word_embeddings=False, audio_config=dict(model_type="qwen2_audio_encoder", d_model=16, encoder_ffn_dim=16, encoder_layers=1, encoder_attention_heads=2, num_mel_bins=8, max_source_positions=16), audio_token_index=5), QWEN2, "qwen2", gguf_mixtures.OF_QWEN),
    "glm4vmoesees": ("Glm4vMoeForConditionalGeneration", dict(model_type="glm4v_moe", tie_word_embeddings=False, vision_config=dict(OF_GLM4V, model_type="glm4v_moe_vision"), **IDS), GLM4VMOE, "glm4", gguf_mixtures.THREE_DIGITS),
}

# Published with the language model's fields beside those of the whole, and as transformers 5 saves it.
FLAT, AS_SAVED = ("qwen2vlsees",), ("qwen25vlsees",)


def beside_towers(to, config, seed):
    """Gemma 3n, whose tower is another library's: its language model by transformers' class, and a tensor of each tower under a published name."""
    own = config["text_config"]
    gguf_mixtures.weights(to, "Gemma3nForCausalLM", dict(own, num_kv_shared_layers=0), seed)
    tensors = {name.replace("model.", "model.language_model."): tensor for name, tensor in load_file(to / "model.safetensors").items()}
    random = torch.Generator().manual_seed(seed)
    for name, *shape in (("embed_vision.embedding.weight", 4, 16), ("embed_audio.embedding_projection.weight", 32, 16), ("audio_tower.conformer.0.attention.post.weight", 16, 16), ("vision_tower.timm_model.conv_stem.conv.weight", 4, 3, 3, 3)):
        tensors[f"model.{name}"] = torch.randn(*shape, generator=random).to(torch.bfloat16)
    tensors["model.vision_tower.timm_model.conv_stem.bn.num_batches_tracked"] = torch.tensor(3)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    (to / "config.json").write_text(json.dumps(config, indent=1))


def as_published(to):
    """Experts with inputs as rows, which transformers saves as they lie in memory."""
    tensors = load_file(to / "model.safetensors")
    tensors = {name: tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor for name, tensor in tensors.items()}
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})


def write(folder, text, byte_pairs, pieces):
    """Writes all folders; returns the names of the rules that tokenizers cut by."""
    for seed, (name, (architecture, config, own, rule, pattern)) in enumerate(TOWERS.items(), 400):
        to = folder(name)
        if rule is None and name != "gemma4sees":
            added = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", True), (3, "<turn>", False)]
            tokens = pieces(to, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, added)
            ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
        elif name == "gemma4sees":
            tokens = gguf_gemma.merged_pieces(to, text)
            ids = dict(pad_token_id=0, eos_token_id=1, bos_token_id=2)
        else:
            special = gguf_mixtures.SPECIAL if rule != "glm4" else ["<|endoftext|>", "<|user|>", "[gMASK]", "<|observation|>"]
            tokens = byte_pairs(to, pattern, special, {"eos_token": special[0], "pad_token": special[0]}, ignore_merges=rule in ("tekken", "llama-bpe", "lfm2", "glm4"), digits=rule == "smollm")
            ids = dict(eos_token_id=288, pad_token_id=288)
        own = dict(own, vocab_size=tokens, **({"vocab_size_per_layer_input": tokens} if name in ("gemma4sees", "gemma3nsees") else {}))
        config = dict(architectures=[architecture], **config, **(own if name in FLAT else {"text_config": own}), **ids)
        if name in AS_SAVED:
            config = dict(transformers.AutoConfig.for_model(**config).to_diff_dict(), architectures=[architecture])
        if name == "gemma3nsees":
            beside_towers(to, config, seed)
        else:
            gguf_mixtures.weights(to, architecture, config, seed)
        if name == "qwen3vlmoesees":
            as_published(to)
    return {name: rule for name, (_, _, _, rule, _) in TOWERS.items() if rule}
