"""Makes testdata/combinations: LoRAs of the tiny models of testdata/peft-methods, and what PEFT's add_weighted_adapter makes of them.

    pip install peft==0.21.2 torch==2.15.0 transformers==5.23.0
    OMP_NUM_THREADS=1 python combinations.py ../peft-methods/bases ../combinations

adapters/NAME are the adapters. expected.safetensors holds CASE/MODULE: the delta (outputs, inputs) that the new adapter adds to a module, in f32; cases.json says
what each case combines and how. Expected is what PEFT computes, but where PEFT is wrong: with an rsLoRA first it forgets that the new scaling is √r and not 1, so its
result is divided by √r ("rslora-first").
"""

import json
import math
import os
import shutil
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
BASES, ROOT = (sys.argv + ["../peft-methods/bases", "../combinations"][len(sys.argv) - 1:])[1:3]
KINDS = {"llama-f32": transformers.LlamaForCausalLM, "gpt2-f32": transformers.GPT2LMHeadModel}


def base(name):
    return KINDS[name].from_pretrained(os.path.join(BASES, name), dtype=torch.float32)


ADAPTERS = {
    "a": ("llama-f32", dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "embed_tokens"])),
    "b": ("llama-f32", dict(r=4, lora_alpha=6, target_modules=["q_proj", "o_proj", "embed_tokens"])),
    "c": ("llama-f32", dict(r=6, lora_alpha=12, use_rslora=True, target_modules=["q_proj", "v_proj"])),
    "d": ("llama-f32", dict(r=4, lora_alpha=6, rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 3}, target_modules=["q_proj", "v_proj"])),
    "e": ("llama-f32", dict(r=4, lora_alpha=4, rank_pattern={"v_proj": 2}, target_modules=["q_proj", "v_proj"])),
    "g": ("gpt2-f32", dict(r=3, lora_alpha=6, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "h": ("gpt2-f32", dict(r=3, lora_alpha=2, target_modules=["c_attn"], fan_in_fan_out=True)),
}
SMALL = {"density": 0.4}
CASES = {
    "cat": (["a", "b"], [0.7, -0.4], "cat", {}),
    "cat-ranks": (["a", "c", "d"], [1.0, 0.5, -2.0], "cat", {}),
    "svd": (["a", "b"], [0.7, -0.4], "svd", {"rank": 3}),
    "svd-ranks": (["a", "c"], [0.7, 0.3], "svd", {}),
    "svd-gpt2": (["g", "h"], [0.5, 0.5], "svd", {"rank": 2}),
    "rslora-first": (["c", "a"], [0.7, 0.3], "svd", {}),
    "linear": (["a", "b"], [0.7, -0.4], "linear", {}),
    "linear-patterns": (["d", "e"], [0.7, 0.4], "linear", {}),
    "linear-gpt2": (["g", "h"], [0.5, -1.5], "linear", {}),
    "ties": (["a", "b"], [0.7, -0.4], "ties", SMALL),
    "ties-frequency": (["a", "b"], [0.7, 0.4], "ties", {**SMALL, "majority_sign": "frequency"}),
    "ties-svd": (["a", "b", "c"], [0.7, 0.4, 0.3], "ties_svd", {**SMALL, "rank": 5}),
    "ties-svd-frequency": (["a", "b", "c"], [0.7, -0.4, 0.3], "ties_svd", {**SMALL, "majority_sign": "frequency"}),
    "prune": (["a", "b"], [0.7, -0.4], "magnitude_prune", SMALL),
    "prune-svd": (["a", "b"], [0.7, -0.4], "magnitude_prune_svd", {**SMALL, "rank": 4}),
    # With a density of 1 nothing is drawn.
    "dare-linear": (["a", "b"], [0.7, -0.4], "dare_linear", {"density": 1.0}),
    "dare-ties": (["a", "b"], [0.7, 0.4], "dare_ties", {"density": 1.0}),
    "dare-ties-svd": (["a", "b"], [0.7, 0.4], "dare_ties_svd", {"density": 1.0}),
    "dare-linear-svd": (["a", "b"], [0.7, 0.4], "dare_linear_svd", {"density": 1.0}),
}

shutil.rmtree(ROOT, ignore_errors=True)
for number, (name, (model, fields)) in enumerate(ADAPTERS.items()):
    torch.manual_seed(number)
    model = get_peft_model(base(model), LoraConfig(lora_dropout=0.0, **fields))
    g = torch.Generator().manual_seed(100 + number)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=g) * 0.2)
    folder = os.path.join(ROOT, "adapters", name)
    model.save_pretrained(folder, save_embedding_layers=False)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json")
    config = json.load(open(path))
    config.update(base_model_name_or_path=None, target_modules=sorted(config["target_modules"]))
    json.dump(config, open(path, "w"), indent=2, sort_keys=True)

expected = {}
for case, (names, weights, method, more) in CASES.items():
    folder = lambda name: os.path.join(ROOT, "adapters", name)
    model = PeftModel.from_pretrained(base(ADAPTERS[names[0]][0]), folder(names[0]), adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(folder(name), adapter_name=name)
    model.add_weighted_adapter(names, weights, "new", combination_type=method, svd_rank=more.get("rank"), density=more.get("density"),
                               majority_sign_method=more.get("majority_sign", "total"))
    wrong = math.sqrt(model.peft_config["new"].r) if model.peft_config["new"].use_rslora else 1.0
    for path, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight") and "new" in (*module.lora_A, *module.lora_embedding_A):
            delta = module.get_delta_weight("new").detach() / wrong
            # Conv1D and embeddings are stored turned.
            turned = getattr(module, "fan_in_fan_out", False) or "new" in module.lora_embedding_A
            expected[f"{case}/{path}"] = (delta.T if turned else delta).contiguous()
save_file(expected, os.path.join(ROOT, "expected.safetensors"))
cases = {case: {"adapters": names, "weights": weights, "method": method, **more} for case, (names, weights, method, more) in CASES.items()}
json.dump(cases, open(os.path.join(ROOT, "cases.json"), "w"), indent=1)
