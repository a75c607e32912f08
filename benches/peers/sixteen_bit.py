"""Merges in 16 bits as Unsloth's `save_pretrained_merged(…, "merged_16bit")` does, written anew because Unsloth itself needs a GPU.

    sixteen_bit.py BASE ADAPTER OUT

Each weight is decoded by bitsandbytes (a 16-bit base is taken as it is), `W += lora_alpha / r · B·A` in f32 on it, and rounded to bf16. Where the
hub has the 16-bit base, Unsloth downloads and uses that one: give it as BASE.
"""

import time

start = time.time()
import json
import pathlib
import shutil
import sys

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from safetensors.torch import save_file

import models

imported = time.time()


def main(base, adapter, out):
    stored, lora = models.tensors(base), models.tensors(adapter)
    config = json.loads((pathlib.Path(adapter) / "adapter_config.json").read_text())
    weights = {}
    for name, value in stored.items():
        if ".weight." in name:
            continue  # a part of a quantized weight
        parts = {key: part for key, part in stored.items() if key.startswith(f"{name}.")}
        if any(".quant_state.bitsandbytes__" in key for key in parts):
            value = dequantize_4bit(value, QuantState.from_dict(parts, device="cpu"))
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight"
        if key in lora:
            a, b = lora[key].float(), lora[key.replace(".lora_A.", ".lora_B.")].float()
            value = value.float().t().addmm_(a.t(), b.t(), alpha=config["lora_alpha"] / config["r"]).t()
            if not torch.isfinite(torch.max(value.min().abs(), value.max())):
                raise SystemExit(f"{name}: not finite")
        weights[name] = value.to(torch.bfloat16).contiguous()
    out = pathlib.Path(out)
    out.mkdir(parents=True)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    for file in pathlib.Path(base).iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "model.safetensors.index.json":
            shutil.copyfile(file, out / file.name)
    settings = json.loads((out / "config.json").read_text())
    settings.pop("quantization_config", None)
    (out / "config.json").write_text(json.dumps(settings, indent=2))
    print(f"import {imported - start:.2f} s, all {time.time() - start:.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
