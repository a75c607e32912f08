"""What merges of large models take: predicted by `qmerge merge --dry-run` for all sizes, measured where a model is on this disk.

    cargo build --release -p qmerge-cli && cargo build --release -p qmerge --example random_llama
    python3 benches/figures/cost.py [--measure] [--folder DIR]

A prediction reads headers alone, so the models are files without contents: NF4 Llamas of the sizes that people run, with a LoRA of rank 16 on all
linear layers. With --measure, a random model of that size is written and merged for real, which takes minutes. cost.json beside this file is
written; write.py puts it into the book.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile

from measure import QMERGE, ROOT, machine, measured

# Names, then hidden size, layers, width of the feed-forward, of keys and values, and tokens.
SIZES = {
    "1.1 B": (2048, 22, 5632, 256, 32000),
    "8 B": (4096, 32, 14336, 1024, 128256),
    "14 B": (5120, 48, 13824, 1024, 152064),
    "32 B": (5120, 64, 27648, 1024, 152064),
    "70 B": (8192, 80, 28672, 1024, 128256),
}
MERGES = {"`--rounding nearest`": ["--rounding", "nearest"], "`--rounding stochastic`": ["--rounding", "stochastic"], "`--fast`": ["--fast"], "default": []}
RANDOM_LLAMA = str(pathlib.Path(QMERGE).parent / "examples/random_llama")
WIDTHS = {"F32": 4, "BF16": 2, "U8": 1}


def linears(size):
    hidden, layers, wide, kv, _ = size
    for layer in range(layers):
        for name, rows, cols in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", wide, hidden),
            ("mlp.up_proj", wide, hidden),
            ("mlp.down_proj", hidden, wide),
        ):
            yield f"model.layers.{layer}.{name}", rows, cols


def write(path, tensors):
    """A safetensors file of (name, dtype, shape, bytes or None): what has no bytes is a hole in the file."""
    header, at, parts = {}, 0, []
    for name, dtype, shape, content in tensors:
        size = WIDTHS[dtype]
        for dim in shape:
            size *= dim
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        parts.append((at, content))
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + at)
        for offset, content in parts:
            if content:
                file.seek(start + offset)
                file.write(content)


def tables(sample):
    """The level tables of a real model."""
    with open(sample / "base/model.safetensors", "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))

        def content(name):
            begin, end = header[name]["data_offsets"]
            file.seek(8 + size + begin)
            return file.read(end - begin)

        stem = "model.layers.0.mlp.down_proj.weight."
        return {name: content(stem + name) for name in ("quant_map", "nested_quant_map", "quant_state.bitsandbytes__nf4")}


def hollow(folder, size, sample):
    """A model of a size, and its adapter, without weights."""
    hidden, layers, wide, kv, vocab = size
    known = tables(sample)
    plain = lambda name, *shape: (name, "BF16", list(shape), None)
    base = [plain("model.embed_tokens.weight", vocab, hidden), plain("lm_head.weight", vocab, hidden), plain("model.norm.weight", hidden)]
    for layer in range(layers):
        base += [plain(f"model.layers.{layer}.{norm}.weight", hidden) for norm in ("input_layernorm", "post_attention_layernorm")]
    adapter = []
    for module, rows, cols in linears(size):
        name, blocks = f"{module}.weight", rows * cols // 64
        state = json.loads(known["quant_state.bitsandbytes__nf4"]) | {"shape": [rows, cols]}
        state = json.dumps(state).encode()
        base += [
            (name, "U8", [rows * cols // 2, 1], None),
            (f"{name}.absmax", "U8", [blocks], None),
            (f"{name}.nested_absmax", "F32", [-(-blocks // 256)], None),
            (f"{name}.nested_quant_map", "F32", [256], known["nested_quant_map"]),
            (f"{name}.quant_map", "F32", [16], known["quant_map"]),
            (f"{name}.quant_state.bitsandbytes__nf4", "U8", [len(state)], state),
        ]
        # Not all of B is zero: an adapter that was never trained would not be rounded.
        adapter += [
            (f"base_model.model.{module}.lora_A.weight", "F32", [16, cols], None),
            (f"base_model.model.{module}.lora_B.weight", "F32", [rows, 16], struct.pack("<f", 1.0)),
        ]
    (folder / "base").mkdir(parents=True)
    (folder / "adapter").mkdir()
    config = json.loads((sample / "base/config.json").read_text())
    config |= {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": wide, "vocab_size": vocab}
    config |= {"num_attention_heads": hidden // 128, "num_key_value_heads": kv // 128}
    (folder / "base/config.json").write_text(json.dumps(config))
    shutil.copy(sample / "adapter/adapter_config.json", folder / "adapter")
    write(folder / "base/model.safetensors", base)
    write(folder / "adapter/adapter_model.safetensors", adapter)


def predicted(model, options):
    command = [QMERGE, "merge", "--base", str(model / "base"), "--adapter", str(model / "adapter"), "-o", str(model / "out")]
    plan = json.loads(subprocess.run([*command, *options, "--dry-run", "--json"], check=True, capture_output=True, text=True).stdout)
    return plan["base"]["bytes"], {"seconds": plan["seconds"], "memory": plan["memory_bytes"]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", action="store_true", help="merge a random model of 1.1 B parameters for real")
    parser.add_argument("--folder", default=tempfile.gettempdir())
    args = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="qmerge-cost-", dir=args.folder))
    subprocess.run([RANDOM_LLAMA, str(folder / "sample"), "tiny"], check=True)
    rows = []
    for name, size in SIZES.items():
        model = folder / name.replace(" ", "")
        real = args.measure and name == "1.1 B"
        if real:
            subprocess.run([RANDOM_LLAMA, str(model), "1b"], check=True)
        else:
            hollow(model, size, folder / "sample")
        for merge, options in MERGES.items():
            stored, prediction = predicted(model, options)
            row = {"model": name, "bytes": stored, "merge": merge, "predicted": prediction}
            if real:
                command = [QMERGE, "merge", "--base", str(model / "base"), "--adapter", str(model / "adapter"), "-o", str(model / "out"), *options]
                row["measured"] = measured(command, model / "out")
            rows.append(row)
            print(json.dumps(row), flush=True)
        shutil.rmtree(model)
    version = subprocess.run([QMERGE, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    figures = {"date": datetime.date.today().isoformat(), "machine": machine(), "program": version, "rows": rows}
    (ROOT / "benches/figures/cost.json").write_text(json.dumps(figures, indent=1) + "\n")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
