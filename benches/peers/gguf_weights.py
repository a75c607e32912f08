"""Decoded weights of a GGUF file of a Llama, under the names that transformers uses."""

import re

import gguf
import torch

MODULES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def decoded(path):
    """Weights in f32 by name, whatever the types they are stored in."""
    reader = gguf.GGUFReader(path)
    heads = {"attn_q": reader.get_field("llama.attention.head_count").contents(),
             "attn_k": reader.get_field("llama.attention.head_count_kv").contents()}
    weights = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if block:
            number, module = block.groups()
            if module in heads:
                # GGUF pairs the two halves of a head for its rotary embedding.
                rows, columns = values.shape
                values = values.reshape(heads[module], rows // heads[module] // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
            weights[f"model.layers.{number}.{MODULES[module]}.weight"] = values
        elif tensor.name.removesuffix(".weight") in WHOLE:
            weights[f"{WHOLE[tensor.name.removesuffix('.weight')]}.weight"] = values
        elif tensor.name != "rope_freqs.weight":
            raise SystemExit(f"{path}: no name for {tensor.name}")
    return weights
