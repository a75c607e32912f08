"""Loss, KL(apart ‖ merged), top-1 agreement and gain kept of merges, in f32 on decoded weights.

    evaluate.py BASE ADAPTER TEXT MERGED…      16 windows of 512 tokens, no BOS, no overlap, first token not scored;
                                               another adapter in place of a merge is kept apart beside the base
"""

import pathlib
import sys

import torch
from transformers import AutoTokenizer

import models

WINDOWS, CONTEXT = 16, 512


def log_probabilities(net, windows):
    with torch.no_grad():
        return [net(window[None]).logits[0, :-1].log_softmax(-1) for window in windows]


def evaluate(base, adapter, text, merged):
    """Yields name, loss, KL, top-1 agreement and gain kept: of the adapter apart, of the base, and of each merge."""
    tokens = AutoTokenizer.from_pretrained(base)(open(text).read(), add_special_tokens=False, return_tensors="pt").input_ids[0]
    windows = tokens[: min(WINDOWS, len(tokens) // CONTEXT) * CONTEXT].reshape(-1, CONTEXT)
    weights = models.decoded(base)
    apart = log_probabilities(models.model(base, models.with_adapter(weights, adapter)), windows)
    losses = {}
    for name in ("apart", "base", *merged):
        if name == "base":
            net = models.model(base, weights)
        elif name != "apart":
            beside = (pathlib.Path(name) / "adapter_config.json").exists()
            net = models.model(base, models.with_adapter(weights, name) if beside else models.decoded(name))
        loss = kl = top1 = count = 0.0
        for window, reference in zip(windows, apart):
            mine = reference if name == "apart" else log_probabilities(net, [window])[0]
            loss -= mine.gather(1, window[1:, None]).sum().item()
            kl += (reference.exp() * (reference - mine)).sum().item()
            top1 += (reference.argmax(-1) == mine.argmax(-1)).sum().item()
            count += len(mine)
        losses[name] = loss / count
        gain = (losses["base"] - losses[name]) / (losses["base"] - losses["apart"]) if "base" in losses else 1.0
        yield name, loss / count, kl / count, top1 / count, gain


if __name__ == "__main__":
    base, adapter, text, *merged = sys.argv[1:]
    for name, loss, kl, top1, gain in evaluate(base, adapter, text, merged):
        print(f"{name}: loss {loss:.5f}  KL {kl:.4f}  top-1 {top1:.4f}  gain kept {gain:.1%}", flush=True)
