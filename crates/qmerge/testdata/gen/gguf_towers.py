"""Tiny random models that see, for gguf_files.py: what llama.cpp makes a file of is their language model. Classes and names are transformers' own, fields of config.json those of published models."""

import json

import torch
from safetensors.torch import load_file, save_file

import gguf_families
import gguf_gemma
import gguf_mixtures

SIGLIP = dict(model_type="siglip_vision_model", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)
OF_GEMMA4 = dict(model_type="gemma4_vision", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=8, patch_size=4, pooling_kernel_size=1, position_embedding_size=4)
PIXTRAL = dict(model_type="pixtral", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8, image_size=16, patch_size=4)
OF_LLAMA4 = dict(model_type="llama4_vision_model", hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4, vision_output_dim=16, projector_input_dim=16, projector_output_dim=16)
OF_QWEN35 = dict(model_type="qwen3_5", depth=1, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=4, out_hidden_size=32, num_position_embeddings=16)

# What published text_configs leave out is left out here too.
GEMMA3 = dict(model_type="gemma3_text", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32, sliding_window=128, query_pre_attn_scalar=32, rope_scaling={"factor": 8.0, "rope_type": "linear"})
MISTRAL = dict(gguf_families.TWO_LAYERS, model_type="mistral", head_dim=16, rms_norm_eps=1e-5, rope_theta=1000000000.0, sliding_window=None, hidden_act="silu")
LLAMA4 = {key: value for key, value in gguf_mixtures.MIXTURES["llama4"][1].items() if key != "tie_word_embeddings"}
QWEN35 = gguf_mixtures.MIXTURES["qwen35"][1]
MINISTRAL3 = gguf_families.FAMILIES["ministral3"][1]

# The class, what the configuration says outside and of the language model, and the tokenizer: the rule's name, and the expression that it cuts by.
TOWERS = {
    "gemma3sees": ("Gemma3ForConditionalGeneration", dict(model_type="gemma3", mm_tokens_per_image=4, vision_config=SIGLIP, boi_token_index=4, eoi_token_index=5, image_token_index=6), GEMMA3, None, None),
    "gemma4sees": ("Gemma4ForConditionalGeneration", dict(model_type="gemma4", audio_config=None, vision_config=OF_GEMMA4, vision_soft_tokens_per_image=4, tie_word_embeddings=True), gguf_gemma.GEMMAS["gemma4"][1], None, None),
    "mistral3sees": ("Mistral3ForConditionalGeneration", dict(model_type="mistral3", tie_word_embeddings=False, vision_config=PIXTRAL, spatial_merge_size=2, vision_feature_layer=-1, projector_hidden_act="gelu", image_token_index=10, multimodal_projector_bias=False), MISTRAL, "tekken", gguf_families.WORDS),
    "ministral3sees": ("Mistral3ForConditionalGeneration", dict(model_type="mistral3", vision_config=PIXTRAL, spatial_merge_size=2, vision_feature_layer=-1, projector_hidden_act="gelu", image_token_index=10, multimodal_projector_bias=False), MINISTRAL3, "tekken", gguf_families.WORDS),
    "llama4sees": ("Llama4ForConditionalGeneration", dict(model_type="llama4", vision_config=OF_LLAMA4, boi_token_index=4, eoi_token_index=5, image_token_index=6, tie_word_embeddings=False), LLAMA4, "llama4", gguf_mixtures.OF_GPT4O),
    "qwen35sees": ("Qwen3_5ForConditionalGeneration", dict(model_type="qwen3_5", vision_config=OF_QWEN35, tie_word_embeddings=False, image_token_id=4, video_token_id=5, vision_start_token_id=6, vision_end_token_id=7), QWEN35, "qwen35", gguf_mixtures.OF_QWEN35),
    "gemma3nsees": ("Gemma3nForConditionalGeneration", dict(model_type="gemma3n"), gguf_gemma.GEMMAS["gemma3n"][1], None, None),
}


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


def write(folder, text, byte_pairs, pieces):
    """Writes all folders; returns the names of the rules that tokenizers cut by."""
    for seed, (name, (architecture, config, own, rule, pattern)) in enumerate(TOWERS.items(), 400):
        to = folder(name)
        if name in ("gemma3sees", "gemma3nsees"):
            added = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", True), (3, "<turn>", False)]
            tokens = pieces(to, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, added)
            ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
        elif name == "gemma4sees":
            tokens = gguf_gemma.merged_pieces(to, text)
            ids = dict(pad_token_id=0, eos_token_id=1, bos_token_id=2)
        else:
            tokens = byte_pairs(to, pattern, gguf_mixtures.SPECIAL, {"eos_token": gguf_mixtures.SPECIAL[0], "pad_token": gguf_mixtures.SPECIAL[0]}, ignore_merges=rule == "tekken")
            ids = dict(eos_token_id=288, pad_token_id=288)
        own = dict(own, vocab_size=tokens, **({"vocab_size_per_layer_input": tokens} if name in ("gemma4sees", "gemma3nsees") else {}))
        config = dict(architectures=[architecture], **config, text_config=own, **ids)
        if name == "gemma3nsees":
            beside_towers(to, config, seed)
        else:
            gguf_mixtures.weights(to, architecture, config, seed)
    return {name: rule for name, (_, _, _, rule, _) in TOWERS.items() if rule}
