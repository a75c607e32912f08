"""What loaders require of a checkpoint, checked on merges: python loaders.py MERGED…

The rules are those of vLLM 0.27.1 and vllm-bnb-plugin 0.0.3, SGLang 0.5.23 and transformers 5.24 (docs/src/serving.md lists them). Quantized weights go through bitsandbytes' own
QuantState, as they do there, and the whole folder through transformers, on the CPU. Needs torch, transformers, accelerate, bitsandbytes and safetensors.
"""

import json
import os
import sys

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from safetensors import safe_open
from transformers import AutoModelForCausalLM

STATES = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "bitsandbytes")


def tensors(folder):
    """All tensors by name; with an index, those of the files that it names."""
    index = os.path.join(folder, "model.safetensors.index.json")
    files = {name for name in os.listdir(folder) if name.endswith(".safetensors")}
    listed = None
    if os.path.exists(index):
        with open(index, encoding="utf-8") as file:
            listed = json.load(file)["weight_map"]
        assert set(listed.values()) <= files, "the index names files that are not there"
        files = set(listed.values())
    found = {}
    for name in sorted(files):
        with safe_open(os.path.join(folder, name), "pt") as file:
            for key in file.keys():
                assert key not in found, f"{key} is there twice"
                assert listed is None or listed.get(key) == name, f"the index does not list {key} in {name}"
                found[key] = file.get_tensor(key)
    assert listed is None or set(listed) == set(found), "the index lists tensors that are not there"
    return found


def four_bit(found, config):
    """As `_quantized_4bit_generator` does: states by the names of their ends, each given to its weight by its prefix."""
    assert config["bnb_4bit_quant_storage"] == "uint8", "vLLM and SGLang take uint8 storage only"
    state_of = {name: value for name, value in found.items() if any(end in name.rsplit(".", 1)[-1] for end in STATES)}
    states = {}
    for name, value in found.items():
        if f"{name}.quant_state.bitsandbytes__{config['bnb_4bit_quant_type']}" not in state_of:
            continue
        state = QuantState.from_dict({key: part for key, part in state_of.items() if name + "." in key}, device="cpu")
        elements = state.shape.numel()
        assert value.dtype == torch.uint8 and list(value.shape) == [elements // 2, 1], f"{name}: {value.dtype} {list(value.shape)}"
        assert len(state.shape) == 2 and state.nested == config["bnb_4bit_use_double_quant"], name
        assert torch.isfinite(dequantize_4bit(value, state)).all(), name
        states[name] = state
    used = {key for key in state_of for name in states if key.startswith(name + ".")}
    assert set(state_of) == used, f"states without a weight: {sorted(set(state_of) - used)[:3]}"
    return states


def eight_bit(found):
    """As `_quantized_8bit_generator` does, which finds the weight of a scale by its name in lower case."""
    weights = {}
    for name, scales in found.items():
        if not name.endswith(".SCB"):
            continue
        weight = name.lower().replace(".scb", ".weight")
        assert weight in found, f"{name}: vLLM looks for {weight}"
        value = found[weight]
        assert value.dtype == torch.int8 and scales.dtype == torch.float32 and scales.shape == value.shape[:1], name
        weights[weight] = scales
    return weights


def check(folder):
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    found = tensors(folder)
    quantization = config.get("quantization_config")
    if quantization is None:
        assert all(value.is_floating_point() for value in found.values()), "not plain, and the configuration does not say so"
        quantized, kind = {}, "plain"
    else:
        assert quantization["quant_method"] == "bitsandbytes"
        quantized = eight_bit(found) if quantization["load_in_8bit"] else four_bit(found, quantization)
        kind = "int8" if quantization["load_in_8bit"] else quantization["bnb_4bit_quant_type"]
        # A plain matrix in a linear layer that is not named would be taken for a quantized one.
        skipped = quantization["llm_int8_skip_modules"] or ["lm_head"]
        for name, value in found.items():
            plain = name.endswith(".weight") and value.dim() == 2 and name not in quantized and "embed" not in name
            assert not plain or any(part in skipped for part in name.split(".")), f"{name} is plain and not skipped"
    tied = config.get("tie_word_embeddings", False)
    assert tied or "lm_head.weight" in found, "the head is missing, and the embeddings are not tied"
    dtypes = sorted({str(state.dtype).removeprefix("torch.") for state in quantized.values() if isinstance(state, QuantState)})
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    problems = {key: sorted(info[key])[:3] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info.get(key)}
    assert not problems, problems
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3, 4]])).logits
    assert torch.isfinite(logits).all()
    states = f", states of {' and '.join(dtypes)}" if dtypes else ""
    print(f"{folder}: {kind}, {len(found)} tensors, {len(quantized)} quantized{states}, tied {tied}: loads")


if __name__ == "__main__":
    for path in sys.argv[1:]:
        check(path)
