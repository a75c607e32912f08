"""Tiny random models with mixtures of experts, latent attention or a gated delta rule, for gguf_files.py: names are those that transformers' own classes are saved under."""

import json
import math
import tempfile

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
OF_QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
THREE_DIGITS = OF_QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
OF_QWEN35 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
OF_GPT4O = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# DeepSeek's first models cut in several steps, and digits one by one behind them.
OF_DEEPSEEK = ["[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", r"[一-龥ࠀ-一가-퟿]+"]
TWO = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, num_hidden_layers=2, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0, "beta_slow": 1.0}
LATENT = dict(TWO, num_key_value_heads=4, kv_lora_rank=32, q_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=16, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1)
DELTA = dict(TWO, layer_types=["linear_attention", "full_attention"], head_dim=16, partial_rotary_factor=0.25, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16, linear_conv_kernel_dim=4, full_attention_interval=2, rope_theta=10000000.0, rms_norm_eps=1e-6)
FEW = dict(TWO, intermediate_size=32, tie_word_embeddings=True, num_local_experts=4, num_experts_per_tok=2, attention_bias=False, attention_multiplier=0.0625, embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=16.0, rope_theta=10000000.0)
MIXED = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32)

# The factor of a rope that the converter computes for Phi 3 and writes for Phi MoE too.
ATTENTION = (1 + math.log(512 / 128) / math.log(128)) ** 0.5
# SentencePiece's.
PIECES = None
# What published models call their class, where it is not transformers' name.
CLASSES = {"phimoe": "PhiMoEForCausalLM"}

# The class, what the configuration says, and the tokenizer: the rule's name, and the expression that it cuts by.
MIXTURES = {
    "gptoss": ("GptOssForCausalLM", dict(TWO, model_type="gpt_oss", head_dim=16, intermediate_size=32, num_local_experts=4, num_experts_per_tok=2, attention_bias=True, sliding_window=128, rope_theta=150000.0, rope_scaling=dict(YARN, truncate=False), layer_types=["sliding_attention", "full_attention"], swiglu_limit=7.0), "gpt-4o", OF_GPT4O),
    "deepseek2": ("DeepseekV2ForCausalLM", dict(LATENT, model_type="deepseek_v2", n_shared_experts=2, rope_theta=10000.0, rope_scaling=dict(YARN, type="yarn", mscale=0.707, mscale_all_dim=0.707), scoring_func="softmax", topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False, routed_scaling_factor=1.0, attention_bias=False), "deepseek-llm", OF_DEEPSEEK),
    "deepseek3": ("DeepseekV3ForCausalLM", dict(LATENT, model_type="deepseek_v3", rope_theta=10000.0, rope_scaling=dict(YARN, type="yarn", mscale=1.0, mscale_all_dim=1.0), scoring_func="sigmoid", topk_method="noaux_tc", n_group=2, topk_group=1, norm_topk_prob=True, routed_scaling_factor=2.5, attention_bias=False, moe_layer_freq=1), "qwen2", OF_QWEN),
    "glm4moe": ("Glm4MoeForCausalLM", dict(TWO, model_type="glm4_moe", head_dim=16, partial_rotary_factor=0.5, use_qk_norm=True, attention_bias=True, moe_intermediate_size=32, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1, norm_topk_prob=True, routed_scaling_factor=2.5, rope_theta=1000000.0), "glm4", THREE_DIGITS),
    "qwen3next": ("Qwen3NextForCausalLM", dict(DELTA, **MIXED, model_type="qwen3_next", norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[]), "qwen2", OF_QWEN),
    "qwen35": ("Qwen3_5ForCausalLM", dict(DELTA, model_type="qwen3_5_text", rope_parameters={"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25, "mrope_section": [1, 1, 0], "mrope_interleaved": True}), "qwen35", OF_QWEN35),
    "qwen35moe": ("Qwen3_5MoeForCausalLM", {key: value for key, value in dict(DELTA, **MIXED, model_type="qwen3_5_moe_text", rope_parameters={"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25, "mrope_section": [1, 1, 0], "mrope_interleaved": True}).items() if key != "intermediate_size"}, "qwen35", OF_QWEN35),
    "olmoe": ("OlmoeForCausalLM", dict(TWO, model_type="olmoe", intermediate_size=32, num_experts=4, num_experts_per_tok=2, norm_topk_prob=False, clip_qkv=None, rope_theta=10000.0), "olmo", GPT2),
    "granitemoe": ("GraniteMoeForCausalLM", dict(FEW, model_type="granitemoe"), "refact", GPT2),
    "granitemoeshared": ("GraniteMoeSharedForCausalLM", dict(FEW, model_type="granitemoeshared", shared_intermediate_size=64), "refact", GPT2),
    "minimax_m2": ("MiniMaxM2ForCausalLM", dict(TWO, model_type="minimax_m2", intermediate_size=32, head_dim=16, rotary_dim=8, num_local_experts=4, num_experts_per_tok=2, scoring_func="sigmoid", use_routing_bias=True, use_qk_norm=True, rope_theta=5000000.0), "minimax-m2", OF_GPT4O),
    "llama4": ("Llama4ForCausalLM", dict(TWO, model_type="llama4_text", head_dim=16, num_hidden_layers=4, intermediate_size=32, intermediate_size_mlp=64, num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=2, use_qk_norm=True, attention_chunk_size=8192, attn_temperature_tuning=True, floor_scale=8192, attn_scale=0.1, rope_theta=500000.0, rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}), "llama4", OF_GPT4O),
    "ernie4_5moe": ("Ernie4_5_MoeForCausalLM", dict(TWO, model_type="ernie4_5_moe", intermediate_size=128, moe_intermediate_size=32, moe_num_experts=4, moe_k=2, moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_interval=1, use_bias=False, rope_theta=500000.0), PIECES, None),
    "phimoe": ("PhimoeForCausalLM", dict(TWO, model_type="phimoe", intermediate_size=32, num_local_experts=4, num_experts_per_tok=2, rope_theta=10000.0, attention_bias=True, lm_head_bias=True, sliding_window=None, original_max_position_embeddings=128, rope_scaling={"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.5, 3.5, 4.5], "short_mscale": ATTENTION, "long_mscale": ATTENTION, "original_max_position_embeddings": 128}), PIECES, None),
    "hunyuanmoe": ("HunYuanMoEV1ForCausalLM", dict(TWO, model_type="hunyuan_v1_moe", head_dim=16, intermediate_size=32, num_experts=4, moe_topk=[2, 2], num_shared_expert=[1, 1], moe_intermediate_size=[32, 32], use_qk_norm=True, attention_bias=False, rope_theta=10000.0, eod_token_id=288), "hunyuan", OF_QWEN),
    "glm4moelite": ("Glm4MoeLiteForCausalLM", dict(LATENT, model_type="glm4_moe_lite", scoring_func="sigmoid", topk_method="noaux_tc", n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.8, attention_bias=False, rope_theta=1000000.0), "glm4", THREE_DIGITS),
    "lfm2moe": ("Lfm2MoeForCausalLM", {**TWO, "num_hidden_layers": 4, "model_type": "lfm2_moe", "norm_eps": 1e-5, "rope_theta": 1000000.0, "conv_L_cache": 3, "conv_bias": False, "layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True, "use_expert_bias": True, "routed_scaling_factor": 1.0, "tie_word_embeddings": True}, "lfm2", THREE_DIGITS),
}

# Of these the converter expects layers that predict further tokens, which transformers leaves out.
PREDICTS_FURTHER = ("glm4moe", "glm4moelite", "qwen3next", "qwen35", "qwen35moe")


def weights(to, architecture, config, seed):
    own = transformers.AutoConfig.for_model(**{key: value for key, value in config.items() if key != "architectures"})
    torch.manual_seed(seed)
    model = getattr(transformers, architecture)(own).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        with safe_open(f"{saved}/model.safetensors", "pt") as file:
            names = {name: file.get_tensor(name) for name in file.keys()}
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in names.items():
        near = 0.9 if "norm" in name.rsplit(".", 1)[0].rsplit(".", 1)[-1] and not name.endswith("bias") or name.endswith(("scale", "scalar")) else 0.0
        values = near + 0.05 * torch.randn(*tensor.shape, generator=random)
        if name.endswith("A_log"):
            # Of these torch's exp is rounded correctly.
            values = torch.log(torch.arange(1, tensor.shape[0] + 1))
        tensors[name] = values.to(torch.bfloat16)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    (to / "config.json").write_text(json.dumps(config, indent=1))


def write(folder, byte_pairs, pieces):
    """Writes all folders; returns the names of the rules that tokenizers cut by."""
    for seed, (name, (architecture, config, rule, pattern)) in enumerate(MIXTURES.items(), 200):
        to = folder(name)
        special = ["<|endoftext|>", "<|user|>", "[gMASK]", "<|observation|>"] if name.startswith("glm4moe") else SPECIAL
        if rule is PIECES:
            added = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", True)]
            tokens = pieces(to, {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, added)
            ids = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
        else:
            tokens = byte_pairs(to, pattern, special, {"eos_token": special[0], "pad_token": special[0]}, ignore_merges=name == "lfm2moe" or name.startswith("glm4moe"), digits=rule == "refact")
            ids = dict(eos_token_id=288, pad_token_id=288)
        weights(to, architecture, dict(architectures=[CLASSES.get(name, architecture)], **config, vocab_size=tokens, **ids), seed)
    return {name: rule for name, (_, _, rule, _) in MIXTURES.items() if rule is not PIECES}
