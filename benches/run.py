"""How fast a model runs, in turns with torch in bf16 on the same cores.

    cargo bench -p qmerge-run --no-run
    python3 benches/run.py BASE --torch venv/bin/python [--rounds 3]     # venv: pip install torch transformers

`prompt` is tokens per second of a prompt of 512 tokens, without and with logits; `generation` is one token after another, beside what a copy reads from
memory at the same time. torch runs the same architecture with random bf16 weights, which is the fastest it has: weights of 4 bits are slower there.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))


def torch_round(base):
    import time

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    tokens = torch.randint(0, config.vocab_size, (1, 512))
    states, logits = [], []
    with torch.no_grad():
        for _ in range(4):
            start = time.perf_counter()
            model.model(tokens)
            states.append(time.perf_counter() - start)
            start = time.perf_counter()
            model(tokens)
            logits.append(time.perf_counter() - start)
    # The first call sets things up.
    print(json.dumps([512 / statistics.median(states[1:]), 512 / statistics.median(logits[1:])]))


def qmerge_round(base):
    command = ["cargo", "bench", "-q", "-p", "qmerge-run", "--bench", "speed", "--", os.path.abspath(base)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=os.path.dirname(HERE)).stdout
    states, logits = re.search(r"prompt 1 x 512: (\d+) tokens/s, with logits (\d+)", text).groups()
    each, speed, copy = re.search(r"generation: ([\d.]+) tokens/s, ([\d.]+) GB/s.* ([\d.]+) GB/s", text).groups()
    return [float(x) for x in (states, logits, each, speed, copy)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("--torch", help="a Python with torch and transformers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one-round-of-torch", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_round_of_torch:
        return torch_round(args.base)
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(qmerge_round(args.base))
        if args.torch:
            command = [args.torch, os.path.abspath(__file__), args.base, "--one-round-of-torch"]
            theirs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    states, logits, each, speed, copy = (statistics.median(column) for column in zip(*ours))
    print(f"prompt: {states:.0f} tokens/s, with logits {logits:.0f}")
    if theirs:
        of_states = statistics.median(t[0] / o[0] for t, o in zip(theirs, ours))
        of_logits = statistics.median(t[1] / o[1] for t, o in zip(theirs, ours))
        print(f"torch in bf16 takes {1 / of_states:.2f} of the time without logits, {1 / of_logits:.2f} with")
    share = statistics.median(row[3] / row[4] for row in ours)
    print(f"generation: {each:.1f} tokens/s, {speed:.1f} GB/s of weights, {share:.2f} of what a copy reads ({copy:.1f} GB/s)")


if __name__ == "__main__":
    sys.exit(main())
