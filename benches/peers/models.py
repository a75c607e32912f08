"""Decoded models in f32, for measuring: reads what qmerge, bitsandbytes, llama.cpp and mlx write."""

import hashlib
import json
import pathlib

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], dtype=np.float32)


def tensors(folder):
    """All tensors of a folder's safetensors files, by name."""
    found = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as reader:
            found |= {name: reader.get_tensor(name) for name in reader.keys()}
    return found


def decoded(folder):
    """Weights in f32 by name: NF4 with or without double quantization, LLM.int8, MLX's affine, plain floats, or a GGUF file."""
    if str(folder).endswith(".gguf"):
        import gguf_weights

        return gguf_weights.decoded(folder)
    stored = tensors(folder)
    weights = {}
    for name, value in stored.items():
        state = stored.get(f"{name}.quant_state.bitsandbytes__nf4")
        scales = stored.get(f"{name.removesuffix('.weight')}.SCB")
        biases = stored.get(f"{name.removesuffix('.weight')}.biases")
        if state is not None:
            weights[name] = nf4(stored, name, json.loads(bytes(state.numpy())))
        elif scales is not None and value.dtype == torch.int8:
            weights[name] = value.float() * scales[:, None] * np.float32(1 / 127)
        elif biases is not None:
            weights[name] = affine(value, stored[f"{name.removesuffix('.weight')}.scales"], biases)
        elif name.endswith((".scales", ".biases")):
            continue
        elif value.is_floating_point() and ".absmax" not in name and "quant_" not in name and "nested_" not in name:
            if not name.endswith(".SCB"):
                weights[name] = value.float()
    return weights


def nf4(stored, name, state):
    absmax = stored[f"{name}.absmax"]
    if "nested_blocksize" in state:
        map_, nested = stored[f"{name}.nested_quant_map"], stored[f"{name}.nested_absmax"]
        absmax = map_[absmax.long()] * nested.repeat_interleave(state["nested_blocksize"])[: len(absmax)]
        absmax = absmax + np.float32(state["nested_offset"])
    packed = stored[name].view(torch.uint8).flatten().numpy()
    codes = np.stack([packed >> 4, packed & 15], 1).reshape(-1, state["blocksize"])
    values = torch.from_numpy(NF4[codes]) * absmax[:, None]
    return values.to(getattr(torch, state["dtype"])).float().reshape(state["shape"])


def affine(packed, scales, biases):
    """MLX's 4 bits: eight codes in a word, the first in the low bits; scale · code + bias for each group, in the scales' type."""
    words = packed.view(torch.int32).numpy().view(np.uint32)
    codes = (words[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
    groups = torch.from_numpy(codes.astype(np.float32)).to(scales.dtype).reshape(*scales.shape, -1)
    return (groups * scales[..., None] + biases[..., None]).float().reshape(len(packed), -1)


def with_adapter(weights, folder):
    """The weights plus `lora_alpha / r · B·A`."""
    config = json.loads((pathlib.Path(folder) / "adapter_config.json").read_text())
    stored = tensors(folder)
    merged = dict(weights)
    for name, a in stored.items():
        if name.endswith(".lora_A.weight"):
            b = stored[name.replace(".lora_A.", ".lora_B.")]
            target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            merged[target] = weights[target] + config["lora_alpha"] / config["r"] * (b.float() @ a.float())
    return merged


def model(folder, weights):
    """A transformers model in f32 with these weights."""
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    net = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing = set(net.load_state_dict(weights, strict=False).missing_keys) - {"lm_head.weight"}
    if missing:
        raise SystemExit(f"{folder}: no weights for {sorted(missing)[:5]}")
    net.tie_weights()
    return net.eval()


def identity(weights):
    """What a calibration names its model by: SHA-256 over the one-dimensional plain weights, names sorted."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        if weights[name].dim() == 1:
            digest.update(name.encode() + b"\n" + weights[name].numpy().astype("<f4").tobytes())
    return digest.hexdigest()
