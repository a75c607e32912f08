"""Makes testdata/adapters-of-others/tinker: an adapter in the form that Tinker's archives have, its base, and what tinker-cookbook merges it into.

    pip install tinker-cookbook==0.6.1 torch safetensors
    python tinker_adapters.py ../adapters-of-others/tinker

The base is a mixture with a tensor for each expert. Of its factors one of gate, up and down is shared by all experts, in A or in B.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tinker_cookbook.weights._merge import apply_merge_op, detect_merge_profile, plan_merge_ops

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else "../adapters-of-others/tinker")
HIDDEN, INTER, EXPERTS, RANK = 32, 16, 3, 4
RANDOM = torch.Generator().manual_seed(3)


def draw(*shape, sigma=0.1):
    return torch.randn(shape, generator=RANDOM) * sigma


layer = "model.layers.0"
base = {
    "model.embed_tokens.weight": draw(24, HIDDEN),
    "lm_head.weight": draw(24, HIDDEN),
    f"{layer}.self_attn.q_proj.weight": draw(HIDDEN, HIDDEN),
    f"{layer}.self_attn.o_proj.weight": draw(HIDDEN, HIDDEN),
}
for expert in range(EXPERTS):
    for name, shape in [("gate_proj", (INTER, HIDDEN)), ("up_proj", (INTER, HIDDEN)), ("down_proj", (HIDDEN, INTER))]:
        base[f"{layer}.mlp.experts.{expert}.{name}.weight"] = draw(*shape)
config = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": HIDDEN, "num_experts": EXPERTS, "tie_word_embeddings": False}
adapter = {}


def pair(module, a, b):
    adapter[f"base_model.model.{module}.lora_A.weight"] = draw(*a)
    adapter[f"base_model.model.{module}.lora_B.weight"] = draw(*b)


pair(f"{layer}.self_attn.q_proj", (RANK, HIDDEN), (HIDDEN, RANK))
pair("model.unembed_tokens", (RANK, HIDDEN), (24, RANK))
pair(f"{layer}.mlp.experts.w1", (1, RANK, HIDDEN), (EXPERTS, INTER, RANK))
pair(f"{layer}.mlp.experts.w2", (EXPERTS, RANK, INTER), (1, HIDDEN, RANK))
pair(f"{layer}.mlp.experts.w3", (EXPERTS, RANK, HIDDEN), (EXPERTS, INTER, RANK))
settings = {"r": RANK, "lora_alpha": 10, "base_model_name_or_path": "someone/tiny-moe"}

for folder in ["base", "adapter"]:
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
save_file(base, ROOT / "base/model.safetensors")
(ROOT / "base/config.json").write_text(json.dumps(config))
save_file(adapter, ROOT / "adapter/adapter_model.safetensors")
(ROOT / "adapter/adapter_config.json").write_text(json.dumps(settings))
merged = {name: tensor.clone() for name, tensor in base.items()}
profile = detect_merge_profile(config, set(base))
for ops in plan_merge_ops(adapter, settings, set(base), profile).values():
    for op in ops:
        apply_merge_op(merged, op)
save_file({name: tensor for name, tensor in merged.items() if not torch.equal(tensor, base[name])}, ROOT / "merged.safetensors")
