"""Writes a calibration file: H = mean of x·xᵀ over the inputs x of each linear layer, with the adapter kept apart.

    calibrate.py BASE ADAPTER TEXT OUTPUT [WINDOWS] [CONTEXT]
"""

import json
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

import models


def main(base, adapter, text, output, windows=12, context=512):
    weights = models.decoded(base)
    net = models.model(base, models.with_adapter(weights, adapter))
    tokens = AutoTokenizer.from_pretrained(base)(open(text).read(), return_tensors="pt", add_special_tokens=False)
    tokens = tokens.input_ids[0]
    windows = min(int(windows), len(tokens) // int(context))
    # Spread over the text.
    starts = [i * ((len(tokens) - int(context)) // max(windows - 1, 1)) for i in range(windows)]
    sums, sharing, seen = {}, {}, {}

    def hook(name):
        def see(_, inputs):
            x = inputs[0]
            # Layers that are given the same tensor share one sum.
            first = seen.setdefault((x.data_ptr(), x.shape), name)
            sharing.setdefault(first, [])
            if name not in sharing[first]:
                sharing[first].append(name)
            if first == name:
                flat = x.reshape(-1, x.shape[-1])
                sums[name] = sums.get(name, 0) + flat.T @ flat
        return see

    alive = []
    for name, layer in net.named_modules():
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            layer.register_forward_pre_hook(hook(f"{name}.weight"))
            # Kept alive until the window ends, so that no address is used twice.
            layer.register_forward_pre_hook(lambda _, inputs: alive.append(inputs[0]))
    with torch.no_grad():
        for start in starts:
            seen.clear(), alive.clear()
            net.model(tokens[None, start : start + int(context)])
    count = windows * int(context)
    names = sorted(sums)
    hessians = {f"hessian.{i}": (sums[name] / count).contiguous() for i, name in enumerate(names)}
    shared = {f"hessian.{i}": sharing[name] for i, name in enumerate(names)}
    save_file(hessians, output, {
        "format": "qmerge-calibration", "version": "1", "model": models.identity(weights), "tokens": str(count),
        "weights": json.dumps(shared),
    })
    print(f"{len(hessians)} matrices for {sum(map(len, shared.values()))} weights, {count} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
