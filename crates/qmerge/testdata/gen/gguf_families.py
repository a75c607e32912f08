"""Tiny random models of the families that are Llama with something changed, for gguf_files.py: shapes and names are those of transformers' own classes."""

import json

import torch
import transformers
from safetensors.torch import save_file

ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TWO_LAYERS = dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, num_hidden_layers=2, max_position_embeddings=512)
FOUR_LAYERS = {**TWO_LAYERS, "num_hidden_layers": 4}
SLIDING = ["sliding_attention"] * 3 + ["full_attention"]

WORDS = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CODE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
# What each rule cuts by; those with DIGITS cut digits one by one first.
PATTERNS = {
    **{rule: ENGLISH % "{1,3}" for rule in ("smaug-bpe", "glm4", "dbrx", "lfm2", "llama-bpe")},
    **{rule: ENGLISH % "" for rule in ("stablelm2", "qwen2")},
    **{rule: GPT2 for rule in ("exaone4", "phi-2", "olmo", "gpt-2", "refact", "command-r", "starcoder")},
    "tekken": WORDS,
    "seed-coder": CODE,
}
DIGITS = ("refact", "command-r", "starcoder")

# The class, what the configuration says, and the tokenizer: the rule's name, and the numbers in a row that it makes one piece.
FAMILIES = {
    "smollm3": ("SmolLM3ForCausalLM", dict(FOUR_LAYERS, model_type="smollm3", rope_theta=5000000.0, no_rope_layers=[1, 1, 1, 0], no_rope_layer_interval=4, use_sliding_window=False, rms_norm_eps=1e-6, tie_word_embeddings=True), "smaug-bpe"),
    "ministral3": ("Ministral3ForCausalLM", dict(TWO_LAYERS, model_type="ministral3", head_dim=16, rms_norm_eps=1e-5, rope_parameters={"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}, tie_word_embeddings=False), "tekken"),
    "glm4": ("Glm4ForCausalLM", dict(TWO_LAYERS, model_type="glm4", head_dim=16, attention_bias=True, partial_rotary_factor=0.5, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False), "glm4"),
    "granite": ("GraniteForCausalLM", dict(TWO_LAYERS, model_type="granite", attention_multiplier=0.0625, embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=16.0, rms_norm_eps=1e-5, rope_theta=10000000.0, tie_word_embeddings=True), "refact"),
    "olmo2": ("Olmo2ForCausalLM", dict(TWO_LAYERS, model_type="olmo2", rms_norm_eps=1e-6, rope_theta=500000.0, tie_word_embeddings=False), "dbrx"),
    "olmo3": ("Olmo3ForCausalLM", dict(FOUR_LAYERS, model_type="olmo3", rms_norm_eps=1e-6, rope_theta=500000.0, rope_scaling={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "attention_factor": 1.2079, "beta_fast": 32.0, "beta_slow": 1.0}, sliding_window=64, layer_types=SLIDING, tie_word_embeddings=False), "dbrx"),
    "cohere": ("CohereForCausalLM", dict(TWO_LAYERS, model_type="cohere", layer_norm_eps=1e-5, logit_scale=0.0625, rope_theta=8000000.0, use_qk_norm=False, tie_word_embeddings=True), "command-r"),
    "cohere2": ("Cohere2ForCausalLM", dict(FOUR_LAYERS, model_type="cohere2", layer_norm_eps=1e-5, logit_scale=0.25, rope_theta=50000.0, rotary_pct=1.0, sliding_window=64, sliding_window_pattern=4, tie_word_embeddings=True), "command-r"),
    "exaone4": ("Exaone4ForCausalLM", dict(FOUR_LAYERS, model_type="exaone4", head_dim=8, rms_norm_eps=1e-5, rope_theta=1000000.0, sliding_window=64, sliding_window_pattern="LLLG", layer_types=SLIDING, tie_word_embeddings=False, rope_scaling={"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}), "exaone4"),
    "seed_oss": ("SeedOssForCausalLM", dict(TWO_LAYERS, model_type="seed_oss", head_dim=16, attention_bias=True, attention_out_bias=False, mlp_bias=False, rms_norm_eps=1e-6, rope_theta=10000000.0, tie_word_embeddings=False), "seed-coder"),
    "starcoder2": ("Starcoder2ForCausalLM", dict(TWO_LAYERS, model_type="starcoder2", norm_epsilon=1e-5, rope_theta=999999.4420358813, sliding_window=None, use_bias=True, tie_word_embeddings=True), "starcoder"),
    "stablelm": ("StableLmForCausalLM", dict(TWO_LAYERS, model_type="stablelm", layer_norm_eps=1e-5, partial_rotary_factor=0.25, rope_theta=10000.0, use_qkv_bias=True, use_parallel_residual=False, qk_layernorm=False, num_attention_heads=2, tie_word_embeddings=False), "stablelm2"),
    "phi": ("PhiForCausalLM", dict(TWO_LAYERS, model_type="phi", num_key_value_heads=4, intermediate_size=128, layer_norm_eps=1e-5, partial_rotary_factor=0.5, rope_theta=10000.0, tie_word_embeddings=False), "phi-2"),
    "gptneox": ("GPTNeoXForCausalLM", {**TWO_LAYERS, "model_type": "gpt_neox", "layer_norm_eps": 1e-5, "rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True, "num_attention_heads": 2, "tie_word_embeddings": False}, "olmo"),
    "falcon": ("FalconForCausalLM", dict(model_type="falcon", hidden_size=32, num_attention_heads=4, num_hidden_layers=2, num_kv_heads=2, new_decoder_architecture=True, parallel_attn=True, bias=False, alibi=False, multi_query=True, layer_norm_epsilon=1e-5), "gpt-2"),
    "gpt2": ("GPT2LMHeadModel", dict(model_type="gpt2", n_embd=32, n_head=4, n_layer=2, n_positions=64, n_ctx=64, layer_norm_epsilon=1e-5, activation_function="gelu_new"), "gpt-2"),
    "ernie4_5": ("Ernie4_5ForCausalLM", dict(TWO_LAYERS, model_type="ernie4_5", head_dim=16, rms_norm_eps=1e-5, rope_theta=500000.0, use_bias=False, tie_word_embeddings=True), "pieces"),
    "hunyuan": ("HunYuanDenseV1ForCausalLM", dict(TWO_LAYERS, model_type="hunyuan_v1_dense", head_dim=16, attention_head_dim=16, rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=32768, rope_scaling={"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}, use_qk_norm=True, attention_bias=False, tie_word_embeddings=True, eod_token_id=272), "qwen2"),
    "nemotron": ("NemotronForCausalLM", dict(TWO_LAYERS, model_type="nemotron", norm_eps=1e-5, partial_rotary_factor=0.5, rope_theta=10000.0, hidden_act="relu2", tie_word_embeddings=False), "pieces"),
    "lfm2": ("Lfm2ForCausalLM", dict(FOUR_LAYERS, model_type="lfm2", norm_eps=1e-5, rope_theta=1000000.0, conv_L_cache=3, conv_bias=False, block_auto_adjust_ff_dim=True, block_ff_dim=96, block_ffn_dim_multiplier=1.0, block_multiple_of=32, layer_types=["conv", "conv", "full_attention", "conv"], tie_embedding=True), "lfm2"),
    "glm": ("GlmForCausalLM", {**TWO_LAYERS, "model_type": "glm", "head_dim": 8, "attention_bias": True, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 32, "tie_word_embeddings": False}, "glm4"),
    "olmo": ("OlmoForCausalLM", dict(TWO_LAYERS, model_type="olmo", clip_qkv=8.0, rope_theta=10000.0, tie_word_embeddings=False), "olmo"),
    "arcee": ("ArceeForCausalLM", dict(TWO_LAYERS, model_type="arcee", head_dim=8, rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling={"rope_type": "yarn", "factor": 20.0, "original_max_position_embeddings": 64, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0}, hidden_act="relu2", attention_bias=False, mlp_bias=False, tie_word_embeddings=False), "llama-bpe"),
    "stablelm-norms": ("StableLmForCausalLM", dict(TWO_LAYERS, model_type="stablelm", layer_norm_eps=1e-5, partial_rotary_factor=0.25, rope_theta=10000.0, use_qkv_bias=False, use_parallel_residual=True, qk_layernorm=True, num_attention_heads=4, hidden_size=64, tie_word_embeddings=False), "stablelm2"),
    "granitehybrid": ("GraniteMoeHybridForCausalLM", dict(TWO_LAYERS, model_type="granitemoehybrid", layer_types=["attention"] * 2, position_embedding_type="rope", num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=64, attention_multiplier=0.0625, embedding_multiplier=12.0, residual_multiplier=0.22, logits_scaling=16.0, rms_norm_eps=1e-5, rope_theta=10000000.0, mamba_n_heads=4, mamba_d_head=16, mamba_expand=2, mamba_n_groups=1, mamba_d_state=16, mamba_d_conv=4, mamba_chunk_size=16, attention_bias=False, tie_word_embeddings=True), "dbrx"),
    "gptbigcode": ("GPTBigCodeForCausalLM", dict(model_type="gpt_bigcode", n_embd=32, n_head=4, n_layer=2, n_positions=64, n_inner=128, layer_norm_epsilon=1e-5, multi_query=True), "starcoder"),
}


def weights(to, architecture, config, seed):
    own = transformers.AutoConfig.for_model(**{key: value for key, value in config.items() if key != "architectures"})
    with torch.device("meta"):
        model = getattr(transformers, architecture)(own)
    random = torch.Generator().manual_seed(seed)
    tied = set(model.all_tied_weights_keys)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        near = 0.9 if "norm" in name.split(".")[-2] or name.split(".")[-2].startswith("ln_") else 0.0
        near = 0.0 if name.endswith("bias") else near
        if config["model_type"] == "gpt_neox":
            name = name.replace("lm_head", "embed_out")  # as files have it
        tensors[name] = (near + 0.05 * torch.randn(*tensor.shape, generator=random)).to(torch.bfloat16)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    (to / "config.json").write_text(json.dumps(config, indent=1))


def write(folder, byte_pairs, pieces):
    """Writes all folders; returns the names of the rules that tokenizers cut by."""
    for seed, (name, (architecture, config, rule)) in enumerate(FAMILIES.items(), 100):
        to = folder(name)
        if rule == "pieces":
            added = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", True)]
            tokens = pieces(to, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, added)
            ids = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
        else:
            special = ["<|endoftext|>", "<|user|>"] if rule == "glm4" else SPECIAL
            config_ = {"eos_token": special[0], "pad_token": special[0]}
            tokens = byte_pairs(to, PATTERNS[rule], special, config_, ignore_merges=rule in ("lfm2", "glm4", "tekken", "llama-bpe"), digits=rule in DIGITS, tokens=270)
            ids = dict(bos_token_id=270, eos_token_id=270, pad_token_id=271)
        weights(to, architecture, dict(architectures=[architecture], **config, vocab_size=tokens, **ids), seed)
    return {name: rule for name, (_, _, rule) in FAMILIES.items() if rule != "pieces"}

