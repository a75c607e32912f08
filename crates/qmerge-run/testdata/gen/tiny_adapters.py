"""Makes the adapter cases of testdata/tiny: a PEFT adapter for one of the tiny models, and the logits of base and adapter kept apart.

    pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0
    python tiny_adapters.py            # after tiny_models.py

A case holds base.txt (the case whose model it belongs to), adapter/ as PEFT saves it, and apart.safetensors: `input_ids` (int64, 2 x 24) and `logits`
(float32), computed by PEFT without merging, in float32 and eval mode. Every parameter that was trained is random and not zero.
"""

import json
import os
import shutil
import warnings

warnings.filterwarnings("ignore")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(HERE, "../tiny")
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES = {
    "llama_lora": ("llama", dict(r=4, lora_alpha=8, target_modules=ALL)),
    "llama_rslora_patterns": ("llama", dict(r=4, lora_alpha=6, use_rslora=True, target_modules=ALL,
                              rank_pattern={"q_proj": 7, "down_proj": 2}, alpha_pattern={"up_proj": 3})),
    "llama_dora": ("llama", dict(r=4, lora_alpha=8, use_dora=True, target_modules=ALL)),
    "llama_bias_lora": ("llama_bias", dict(r=4, lora_alpha=8, bias="all", target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])),
    "llama_embed_lora": ("llama", dict(r=4, lora_alpha=8, target_modules=["embed_tokens", "lm_head", "v_proj"])),
    "gpt2_lora": ("gpt2", dict(r=4, lora_alpha=8, fan_in_fan_out=True, target_modules=["c_attn", "c_proj", "c_fc"])),
    "mixtral_lora": ("mixtral", dict(r=4, lora_alpha=8, target_modules=["q_proj", "o_proj"])),
}


def main():
    torch.set_num_threads(1)
    for name, (base, choices) in CASES.items():
        folder = os.path.join(TINY, name)
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        model = AutoModelForCausalLM.from_pretrained(os.path.join(TINY, base), dtype=torch.float32, attn_implementation="eager")
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **choices)).eval()
        random = torch.Generator().manual_seed(sum(name.encode()))
        with torch.no_grad():
            for key, value in model.named_parameters():
                if not value.requires_grad:
                    continue
                noise = torch.randn(value.shape, generator=random)
                if "magnitude" in key:
                    value *= 1 + 0.2 * noise
                elif "lora_" in key:
                    value.copy_(0.3 * noise)
                else:
                    value += 0.2 * noise
        model.save_pretrained(os.path.join(folder, "adapter"))
        path = os.path.join(folder, "adapter", "adapter_config.json")
        with open(path) as f:
            config = json.load(f)
        config["base_model_name_or_path"] = base
        with open(path, "w") as f:
            json.dump(config, f, indent=2)
        if os.path.exists(os.path.join(folder, "adapter", "README.md")):
            os.remove(os.path.join(folder, "adapter", "README.md"))
        ids = load_file(os.path.join(TINY, base, "logits.safetensors"))["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
        save_file({"input_ids": ids, "logits": logits.contiguous()}, os.path.join(folder, "apart.safetensors"))
        with open(os.path.join(folder, "base.txt"), "w") as f:
            f.write(base + "\n")
        print(name, tuple(logits.shape))


if __name__ == "__main__":
    main()
