"""What a merge of a mixture of 670 B parameters would take on 16 machines: planned by `qmerge plan --parts 16`, never run.

    cargo build --release -p qmerge-cli
    python3 benches/figures/many.py [--folder DIR]

A plan reads headers alone, so the model is files without contents, shaped like DeepSeek-V3: FP8 in blocks, 61 layers, 256 experts in each of 58. Seconds are the
plan's, from rates that were measured on one machine (crates/qmerge/src/merge/work.rs); bytes are exact; requests follow from the sizes that crates/qmerge-store reads and
writes at a time. many.json beside this file is written; write.py puts it into the book.
"""

import argparse
import datetime
import json
import math
import pathlib
import shutil
import struct
import subprocess
import tempfile

from cost import WIDTHS, write
from measure import QMERGE, ROOT, machine

NODES, THREADS = 16, 64
# Bytes of a request to read, and of a part of an upload: 8 MiB, or more for files that would have more than 9,000.
READ, PART, MOST_PARTS = 8 << 20, 8 << 20, 9_000
HIDDEN, LAYERS, DENSE, EXPERTS, WIDE, NARROW, HEADS, VOCAB = 7168, 61, 3, 256, 18432, 2048, 128, 129280
WIDTHS["F8_E4M3"] = 1
CONFIG = {
    "model_type": "deepseek_v3", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "first_k_dense_replace": DENSE, "n_routed_experts": EXPERTS,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "intermediate_size": WIDE, "moe_intermediate_size": NARROW, "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "vocab_size": VOCAB, "rms_norm_eps": 1e-6, "rope_theta": 10000, "max_position_embeddings": 163840, "hidden_act": "silu", "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
}
ATTENTION = {
    "q_a_proj": (1536, HIDDEN), "q_b_proj": (HEADS * 192, 1536), "kv_a_proj_with_mqa": (576, HIDDEN), "kv_b_proj": (HEADS * 256, 512), "o_proj": (HIDDEN, HEADS * 128),
}


def feed_forward(width):
    return {"gate_proj": (width, HIDDEN), "up_proj": (width, HIDDEN), "down_proj": (HIDDEN, width)}


def linears(layer):
    """Name, rows, columns and kind of a layer's weights."""
    stem = f"model.layers.{layer}"
    for name, shape in ATTENTION.items():
        yield f"{stem}.self_attn.{name}", *shape, "attention"
    if layer < DENSE:
        for name, shape in feed_forward(WIDE).items():
            yield f"{stem}.mlp.{name}", *shape, "attention"
        return
    for name, shape in feed_forward(NARROW).items():
        yield f"{stem}.mlp.shared_experts.{name}", *shape, "attention"
    for expert in range(EXPERTS):
        for name, shape in feed_forward(NARROW).items():
            yield f"{stem}.mlp.experts.{expert}.{name}", *shape, "experts"


def hollow(folder):
    """The model without weights, a file for each layer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = {}
    for layer in range(LAYERS + 1):
        tensors = []
        if layer == LAYERS:
            tensors = [("model.embed_tokens.weight", "BF16", [VOCAB, HIDDEN], None), ("lm_head.weight", "BF16", [VOCAB, HIDDEN], None), ("model.norm.weight", "BF16", [HIDDEN], None)]
        else:
            stem = f"model.layers.{layer}"
            norms = {"input_layernorm": HIDDEN, "post_attention_layernorm": HIDDEN, "self_attn.q_a_layernorm": 1536, "self_attn.kv_a_layernorm": 512}
            tensors = [(f"{stem}.{name}.weight", "BF16", [size], None) for name, size in norms.items()]
            if layer >= DENSE:
                tensors += [(f"{stem}.mlp.gate.weight", "BF16", [EXPERTS, HIDDEN], None), (f"{stem}.mlp.gate.e_score_correction_bias", "F32", [EXPERTS], None)]
            for name, rows, cols, _ in linears(layer):
                blocks = [math.ceil(rows / 128), math.ceil(cols / 128)]
                one = struct.pack("<f", 1.0) * (blocks[0] * blocks[1])
                tensors += [(f"{name}.weight", "F8_E4M3", [rows, cols], None), (f"{name}.weight_scale_inv", "F32", blocks, one)]
        file = f"model-{layer + 1:05}-of-{LAYERS + 1:05}.safetensors"
        write(folder / file, tensors)
        names |= {name: file for name, *_ in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def adapter(folder, kinds):
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 16, "target_modules": ["q_a_proj"], "bias": "none"}
    tensors = []
    for layer in range(LAYERS):
        for module, rows, cols, kind in linears(layer):
            if kind in kinds:
                stem = f"base_model.model.{module}"
                # Not all of B is zero: an adapter that was never trained would not be rounded.
                tensors += [(f"{stem}.lora_A.weight", "BF16", [16, cols], None), (f"{stem}.lora_B.weight", "BF16", [rows, 16], struct.pack("<H", 0x3F80))]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    write(folder / "adapter_model.safetensors", tensors)


def planned(folder, name, options):
    command = [QMERGE, "plan", "--base", str(folder / "base"), "--adapter", str(folder / name), "-o", str(folder / "out"), "--parts", str(NODES), "--threads", str(THREADS)]
    plan = json.loads(subprocess.run([*command, *options, "--json"], check=True, capture_output=True, text=True).stdout)
    parts = plan["parts"]
    longest = lambda key: max(part[key] for part in parts)
    return {
        "bytes": plan["base"]["bytes"], "memory": plan["memory_bytes"], "whole": plan["seconds"],
        "read": longest("bytes_read"), "written": longest("bytes_written"), "seconds": longest("seconds"),
        "reads": math.ceil(longest("bytes_read") / READ), "writes": math.ceil(longest("bytes_written") / PART),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default=tempfile.gettempdir())
    folder = pathlib.Path(tempfile.mkdtemp(prefix="qmerge-many-", dir=parser.parse_args().folder))
    try:
        hollow(folder / "base")
        rows = []
        for name, kinds in {"attention": ["attention"], "all": ["attention", "experts"]}.items():
            adapter(folder / name, kinds)
            for method in ("nearest", "stochastic"):
                rows.append({"adapter": name, "merge": f"`--rounding {method}`", **planned(folder, name, ["--rounding", method])})
                print(json.dumps(rows[-1]), flush=True)
    finally:
        shutil.rmtree(folder)
    version = subprocess.run([QMERGE, "--version"], check=True, capture_output=True, text=True).stdout.strip()
    figures = {"date": datetime.date.today().isoformat(), "machine": machine(), "program": version, "nodes": NODES, "threads": THREADS, "rows": rows}
    (ROOT / "benches/figures/many.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
