"""GGUF files in llama.cpp: the loss that it has on windows of a text, and how it goes on from a prompt, to hold against `qmerge compare` and `qmerge generate`.

    pip install llama-cpp-py-sync numpy
    python3 benches/peers/llama_runs.py TEXT FILE.gguf ... [--windows 2] [--tokens 24]

Windows are the first of the text, of 512 tokens each, behind the token that the model's texts begin with, if it has one, as those of `qmerge compare` are. The prompt is the text's first 32
tokens. llama.cpp rounds activations to 8 bits where it multiplies quantized weights, which qmerge does not.
"""

import argparse

from llama import Model

WINDOW, PROMPT = 512, 32


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=24)
    args = parser.parse_args()
    text = open(args.text).read()
    for file in args.files:
        model = Model(file, WINDOW + 8)
        tokens = model.tokens(text)
        loss, number = model.loss(tokens, WINDOW, args.windows)
        found = model.greedy(model.begin + tokens[:PROMPT], args.tokens)
        print(f"{file}: loss {loss:.4f} on {number} predictions; after {PROMPT} tokens of the text: {model.text(found)!r}")
        model.close()


main()
