"""Makes testdata/paid.json: how much attention is paid to each token of the tiny models' sequences, as transformers' eager attention has it.

    python paid.py

For each case, a list for each layer with attention: the squares of the shares that a token is given, summed over queries and heads, divided by their mean over
the sequence's tokens; both sequences behind each other. Versions as for tiny_models.py.
"""

import json
import os

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
TINY = os.path.join(HERE, "..", "tiny")
# Plain, with queries, keys and values in one matrix, beside the feed-forward, with soft caps, windows, sinks, chunks, and made of a narrow vector.
CASES = ["llama", "phi3", "gpt2", "gpt_neox", "falcon", "cohere", "gemma2", "gemma3_text", "qwen2_window", "gpt_oss", "llama4_text", "deepseek_v2", "deepseek_v3", "deepseek_v3_plain"]

found = {}
for case in CASES:
    folder = os.path.join(TINY, case)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager").eval()
    ids = load_file(os.path.join(folder, "logits.safetensors"))["input_ids"]
    with torch.no_grad():
        attentions = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    paid = [shares.double().square().sum(dim=(1, 2)) for shares in attentions]
    found[case] = [[round(x, 6) for x in (own / own.mean(dim=1, keepdim=True)).reshape(-1).tolist()] for own in paid]
with open(os.path.join(HERE, "..", "paid.json"), "w") as file:
    lines = ",\n".join(f'"{case}": {json.dumps(layers)}' for case, layers in found.items())
    file.write("{\n" + lines + "\n}\n")
