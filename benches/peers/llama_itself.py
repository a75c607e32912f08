"""How far llama.cpp is from itself on a GGUF file, where nothing changes that a user would call a change: the yardstick for how far qmerge is from it.

    llama_itself.py NAME MODEL.gguf TEXT OUT.json --title WORDS [--prompts 8] [--windows 2] [--context 512]

Rows: the file with each weight of its first norm moved by one step of f32; a text taken in token by token; weights that are not repacked; no flash attention. Of each, against llama.cpp
as it comes: the mean KL divergence and the perplexity on windows of TEXT, and of 24 tokens that follow a prompt how many are the same before the first that differs, and how many are the most likely where
they stand; means of the prompts. Then qmerge's tokens against llama.cpp's, and against qmerge's own on the file with the moved norm. benches/figures/write.py puts OUT.json into the book.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import gguf
import numpy as np

import llama

HERE = pathlib.Path(__file__).resolve().parent
QMERGE = os.environ.get("QMERGE", str(HERE.parent.parent / "target/release/qmerge"))
PROMPT, TOKENS = 32, 24
NORM = "blk.0.attn_norm.weight"
SETTINGS = {"one": {"together": 1}, "plain": {"repacked": False}, "flash": {"flash_attention": False}}


def moved(path, out):
    """The file with each weight of its first norm one step of f32 larger in magnitude."""
    shutil.copyfile(path, out)
    norm = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == NORM)
    assert norm.tensor_type == gguf.GGMLQuantizationType.F32
    values = norm.data.astype(np.float32)
    with open(out, "r+b") as file:
        file.seek(norm.data_offset)
        file.write(np.nextafter(values, np.copysign(np.float32(np.inf), values)).tobytes())


def log_probabilities(model, tokens, args):
    """Of each window: log probabilities (tokens, vocabulary) behind each of its tokens but the last."""
    for first in range(0, args.windows * args.context, args.context):
        logits = model.logits(model.begin + tokens[first : first + args.context])[len(model.begin) : -1]
        logits -= logits.max(1, keepdims=True)
        yield logits - np.log(np.exp(logits).sum(1, keepdims=True))


def continued(path, prompts, model):
    """What qmerge goes on with, as llama.cpp's tokens."""
    words = [subprocess.run([QMERGE, "generate", "--base", path, "--prompt", prompt, "--max-tokens", str(TOKENS), "--quiet"], check=True, capture_output=True, text=True).stdout for prompt in prompts]
    return [model.tokens(text.removesuffix("\n"))[:TOKENS] for text in words]


def same(pairs):
    """The mean number of tokens before the first that differs."""
    return float(np.mean([next((at for at, pair in enumerate(zip(*both)) if pair[0] != pair[1]), min(map(len, both))) for both in pairs]))


def main():
    parser = argparse.ArgumentParser()
    for name in ("name", "model", "text", "out"):
        parser.add_argument(name)
    parser.add_argument("--title", required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--context", type=int, default=512)
    args = parser.parse_args()
    room = args.context + 8
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "moved.gguf")
        moved(args.model, file)
        model = llama.Model(args.model, room)
        tokens = model.tokens(open(args.text).read())
        starts = [tokens[at * args.context : at * args.context + PROMPT] for at in range(args.prompts)]
        prompts = [" ".join(model.text(start).split()) for start in starts]
        begun = [model.tokens(prompt, True) for prompt in prompts]
        found = [model.greedy(begin, TOKENS) for begin in begun]
        before = list(log_probabilities(model, tokens, args))
        scored = [tokens[at * args.context + 1 : (at + 1) * args.context] for at in range(args.windows)]
        perplexity = lambda all: float(np.exp(-np.mean([own[np.arange(len(to)), to] for own, to in zip(all, scored)])))
        along = lambda model, answers: float(np.mean([model.along(begin, answer) for begin, answer in zip(begun, answers)]))
        rows = {"itself": {"perplexity": perplexity(before)}}
        for name, path, own in [("moved", file, {}), *[(name, args.model, own) for name, own in SETTINGS.items()]]:
            other = llama.Model(path, room, **own)
            after = list(log_probabilities(other, tokens, args))
            kl = float(np.mean([(np.exp(p) * (p - q)).sum(1) for p, q in zip(before, after)]))
            answers = [other.greedy(begin, TOKENS) for begin in begun]
            rows[name] = {"kl": kl, "perplexity": perplexity(after), "same": same(zip(found, answers)), "along": along(model, answers)}
            other.close()
            print(args.name, name, json.dumps(rows[name]), flush=True)
        answers = continued(args.model, prompts, model)
        rows["qmerge"] = {"same": same(zip(found, answers)), "along": along(model, answers)}
        rows["qmerge_moved"] = {"same": same(zip(answers, continued(file, prompts, model)))}
        print(args.name, json.dumps({name: rows[name] for name in ("qmerge", "qmerge_moved")}))
    out = pathlib.Path(args.out)
    known = json.loads(out.read_text()) if out.exists() else {"models": {}}
    known["models"][args.name] = {"title": args.title, "prompts": args.prompts, "windows": args.windows, "context": args.context, "rows": rows}
    program = subprocess.run([QMERGE, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    known.update(program=program, llama_cpp=llama.VERSION, date=str(datetime.date.today()))
    out.write_text(json.dumps(known, indent=1) + "\n")


main()
