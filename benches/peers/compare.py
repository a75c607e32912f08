"""Holds qmerge against PEFT on a real model: the same bytes, and the output loads and speaks.

    pip install peft==0.21.2 bitsandbytes==0.50.2 torch transformers==5.23.0
    cargo build --release
    python benches/peers/compare.py BASE ADAPTER [PROMPT]

Makes both merges in a temporary folder, compares every tensor, loads qmerge's in transformers and generates.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
QMERGE = os.environ.get("QMERGE", os.path.join(HERE, "../../target/release/qmerge"))


def tensors(folder):
    """Name to (type, shape, bytes), over all weight files."""
    found = {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".safetensors"):
            continue
        with open(os.path.join(folder, name), "rb") as f:
            raw = f.read()
        n = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + n])
        header.pop("__metadata__", None)
        for key, t in header.items():
            start, end = t["data_offsets"]
            found[key] = (t["dtype"], t["shape"], raw[8 + n + start : 8 + n + end])
    return found


def main():
    base, adapter = sys.argv[1:3]
    prompt = sys.argv[3] if len(sys.argv) > 3 else "In the beginning"
    with tempfile.TemporaryDirectory() as tmp:
        ours, theirs = os.path.join(tmp, "qmerge"), os.path.join(tmp, "peft")
        start = time.time()
        subprocess.run([QMERGE, "merge", "--base", base, "--adapter", adapter, "--rounding", "nearest", "-o", ours], check=True)
        print(f"qmerge: {time.time() - start:.2f} s")
        env = dict(os.environ, OMP_NUM_THREADS="1")
        subprocess.run([sys.executable, os.path.join(HERE, "peft_merge.py"), base, adapter, theirs], check=True, env=env)
        a, b = tensors(ours), tensors(theirs)
        different = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
        print(f"{len(a)} tensors, {len(different)} differ from PEFT's", different[:5])
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        tokenizer = AutoTokenizer.from_pretrained(ours)
        model = AutoModelForCausalLM.from_pretrained(ours)
        inputs = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        print("transformers says:", repr(tokenizer.decode(out[0], skip_special_tokens=True)))
        sys.exit(1 if different else 0)


main()
