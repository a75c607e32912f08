"""GGUF files in llama.cpp: the loss that it has on windows of a text, and how it goes on from a prompt, to hold against `qmerge compare` and `qmerge generate`.

    pip install llama-cpp-python numpy
    python3 benches/peers/llama_runs.py TEXT FILE.gguf ... [--windows 2] [--tokens 24]

Windows are the first of the text, of 512 tokens each, behind the token that the model's texts begin with, if it has one: those of `qmerge compare` where the text has
no more than these. The prompt is the text's first 32 tokens. llama.cpp rounds activations to 8 bits where it multiplies quantized weights, which qmerge does not.
"""

import argparse

import numpy as np
from llama_cpp import Llama

WINDOW, PROMPT = 512, 32


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args()
    text = open(args.text, "rb").read()
    for file in args.files:
        model = Llama(file, n_ctx=WINDOW + 1, logits_all=True, verbose=False)
        tokens = model.tokenize(text, add_bos=False)
        begin = model.tokenize(b"", add_bos=True)
        losses = []
        for first in range(0, min(len(tokens), args.windows * WINDOW) - WINDOW + 1, WINDOW):
            window = begin + tokens[first : first + WINDOW]
            model.reset()
            model.eval(window)
            logits = np.array(model.scores[: len(window) - 1], dtype=np.float64)
            most = logits.max(1, keepdims=True)
            total = np.log(np.exp(logits - most).sum(1)) + most[:, 0]
            losses.extend(total - logits[np.arange(len(window) - 1), window[1:]])
        model.reset()
        model.eval(begin + tokens[:PROMPT])
        found = []
        for _ in range(args.tokens):
            found.append(int(np.argmax(model.scores[model.n_tokens - 1])))
            model.eval(found[-1:])
        print(f"{file}: loss {np.mean(losses):.4f} on {len(losses)} predictions; after {PROMPT} tokens of the text: {model.detokenize(found).decode(errors='replace')!r}")


main()
