"""Tiny random models of Gemma 4 and 3n, for gguf_files.py: names are those that transformers' own classes are saved under, fields of config.json those of published models."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import gguf_mixtures

SIZES = dict(hidden_size=32, num_attention_heads=2, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=512, rms_norm_eps=1e-6, tie_word_embeddings=True, head_dim=16, sliding_window=64, final_logit_softcapping=30.0)
ROPES = {"full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"}, "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}}
KINDS = ["sliding_attention", "full_attention"]
GEMMA4 = dict(SIZES, model_type="gemma4_text", global_head_dim=32, rope_parameters=ROPES, attention_bias=False, num_global_key_value_heads=None)

# The class, and what the configuration says.
GEMMAS = {
    # Embeddings of layers, and last layers that see others' keys and values and are twice as wide.
    "gemma4": ("Gemma4ForCausalLM", dict(GEMMA4, num_hidden_layers=4, layer_types=KINDS * 2, hidden_size_per_layer_input=8, num_kv_shared_layers=2, use_double_wide_mlp=True, attention_k_eq_v=False, enable_moe_block=False)),
    # Experts beside the feed-forward; keys that are values, of fewer heads.
    "gemma4moe": ("Gemma4ForCausalLM", dict(GEMMA4, num_hidden_layers=2, layer_types=KINDS, hidden_size_per_layer_input=0, num_kv_shared_layers=0, use_double_wide_mlp=False, attention_k_eq_v=True, num_global_key_value_heads=1, enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32)),
    # Several streams; published models have keys and values in the last layers too, which see others'.
    "gemma3n": ("Gemma3nForCausalLM", dict(SIZES, model_type="gemma3n_text", num_key_value_heads=1, num_hidden_layers=4, layer_types=KINDS * 2, hidden_size_per_layer_input=8, num_kv_shared_layers=2, laurel_rank=32, altup_num_inputs=4, altup_active_idx=0, activation_sparsity_pattern=[0.95, 0.95, 0.0, 0.0], rope_theta=1000000.0, rope_local_base_freq=10000.0)),
}
# As published: embeddings of layers have fewer tokens than the others.
GEMMAS["gemma3npadded"] = GEMMAS["gemma3n"]


def merged_pieces(folder, text, tokens=352):
    """Gemma 4's tokenizer: pieces with a ▁ for each space, merged in an order."""
    named = {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>", "mask": "<mask>", "eot": "<turn|>", "image": "<|image|>"}
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    own = [*named.values(), "<|turn>", "<|tool_call>", "<table>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=tokens, special_tokens=own, show_progress=False))
    document = json.loads(tokenizer.to_str())
    plain = ["<|tool_call>", "<table>"]
    document["added_tokens"] = [{**token, "special": token["content"] not in plain} for token in document["added_tokens"] if not token["content"].startswith("<0x")]
    for behind, special in (("<|behind|>", True), ("<behind>", False)):
        document["added_tokens"].append({**document["added_tokens"][0], "id": tokens, "content": behind, "special": special})
        tokens += 1
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False))
    config = {"tokenizer_class": "GemmaTokenizer", **{f"{kind}_token": token for kind, token in named.items()}, "extra_special_tokens": ["<|turn>"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    return tokens


def write(folder, text, pieces):
    """Writes all folders."""
    for seed, (name, (architecture, config)) in enumerate(GEMMAS.items(), 300):
        to = folder(name)
        if name.startswith("gemma3n"):
            added = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", True), (3, "<turn>", False)]
            tokens = pieces(to, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, added)
            ids = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
        else:
            tokens = merged_pieces(to, text)
            ids = dict(pad_token_id=0, eos_token_id=1, bos_token_id=2)
        config = dict(architectures=[architecture], **config, vocab_size=tokens, vocab_size_per_layer_input=tokens - 6 * (name == "gemma3npadded"), **ids)
        own = {**config, "num_kv_shared_layers": 0} if name.startswith("gemma3n") else config
        gguf_mixtures.weights(to, architecture, own, seed)
        (to / "config.json").write_text(json.dumps(config, indent=1))
