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


def main(base, adapter, text, *merged):
    tokens = AutoTokenizer.from_pretrained(base)(open(text).read(), add_special_tokens=False, return_tensors="pt")
    windows = tokens.input_ids[0][: WINDOWS * CONTEXT].reshape(-1, CONTEXT)
    weights = models.decoded(base)
    apart = log_probabilities(models.model(base, models.with_adapter(weights, adapter)), windows)
    losses = {}
    candidates = [("apart", models.with_adapter(weights, adapter)), ("base", weights)]
    for path in merged:
        beside = (pathlib.Path(path) / "adapter_config.json").exists()
        candidates.append((path, models.with_adapter(weights, path) if beside else None))
    for name, weights in candidates:
        net = models.model(base, weights or models.decoded(name))
        loss = kl = top1 = count = 0.0
        for window, reference in zip(windows, apart):
            with torch.no_grad():
                mine = net(window[None]).logits[0, :-1].log_softmax(-1)
            loss -= mine.gather(1, window[1:, None]).sum().item()
            kl += (reference.exp() * (reference - mine)).sum().item()
            top1 += (reference.argmax(-1) == mine.argmax(-1)).sum().item()
            count += len(mine)
        losses[name] = loss / count
        gain = (losses["base"] - losses[name]) / (losses["base"] - losses["apart"]) if "base" in losses else 1.0
        print(f"{name}: loss {loss / count:.5f}  KL {kl / count:.4f}  top-1 {top1 / count:.4f}  gain kept {gain:.1%}",
              flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
