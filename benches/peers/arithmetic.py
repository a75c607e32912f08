"""Arithmetic on adapters of a random model with the shapes of Llama 3.2 1B: qmerge's time and memory, and those of PEFT and mergekit on some of its layers.

    arithmetic.py [--layers 16] [--slice 1] [--adapters 8] [--rank 64] [--threads 2] [--mergekit PYTHON] [--folder DIR] [--only combine,extract] [--write]

Made are LoRAs of all linear layers, and a pair of models in bf16 that differ by noise in all weights. Timed, as whole processes, are `qmerge combine --rank R` (svd of the sum) and `qmerge extract --rank R` on all layers; on the first `--slice` layers the same, PEFT's
`add_weighted_adapter(combination_type="svd")`, and `mergekit-extract-lora` where a Python that has it is named. (PEFT decomposes every delta whole, so all layers would take it hours.) Seconds are of the wall and of CPU. `--write` puts them into benches/figures/arithmetic.json, for write.py.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
QMERGE = os.environ.get("QMERGE", str(HERE.parent.parent / "target/release/qmerge"))
HIDDEN, INNER, KV = 2048, 8192, 512
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KV, HIDDEN), "self_attn.v_proj": (KV, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
}
PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, rank, threads, *adapters = sys.argv[1:]
torch.set_num_threads(int(threads))
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapters[0], adapter_name="a0")
for number, path in enumerate(adapters[1:], 1):
    model.load_adapter(path, adapter_name=f"a{number}")
names = [f"a{number}" for number in range(len(adapters))]
model.add_weighted_adapter(names, [1 / len(names)] * len(names), "sum", combination_type="svd", svd_rank=int(rank))
"""


def config(layers):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 4096, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    }


def model(folder, layers, tuned):
    """Random weights; the tuned one's are those of the base and a little more."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(layers)))
    random, noise = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)

    def weight(*shape):
        values = 0.02 * torch.randn(shape, generator=random)
        return (values + 0.001 * torch.randn(shape, generator=noise) if tuned else values).bfloat16()

    tensors = {"model.embed_tokens.weight": weight(4096, HIDDEN), "model.norm.weight": torch.ones(HIDDEN).bfloat16()}
    for layer in range(layers):
        for name, shape in SHAPES.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = weight(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = torch.ones(HIDDEN).bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def adapter(folder, layers, rank, seed):
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    names = [name.rsplit(".", 1)[1] for name in SHAPES]
    (folder / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": names, "base_model_name_or_path": None, "bias": "none"}
    ))
    random, tensors = torch.Generator().manual_seed(seed), {}
    for layer in range(layers):
        for name, (outputs, inputs) in SHAPES.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, inputs, generator=random) / inputs**0.5
            tensors[f"{prefix}.lora_B.weight"] = 0.01 * torch.randn(outputs, rank, generator=random)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def apart(of, *given):
    """Runs what makes a file in a process of its own: a command begins with the peak of memory of the process that starts it."""
    process = multiprocessing.get_context("spawn").Process(target=of, args=given)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{of.__name__} {given}: exit status {process.exitcode}")


def timed(*command):
    """Seconds of the wall and of CPU, and the peak of memory in MiB."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, env=dict(os.environ, HF_HUB_OFFLINE="1"))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            log.seek(0)
            raise SystemExit(f"{command}\n{log.read().decode(errors='replace')[-3000:]}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--slice", type=int, default=1)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mergekit", help="a Python with mergekit")
    parser.add_argument("--folder", type=pathlib.Path, help="keep models and adapters here")
    parser.add_argument("--only", default="combine,extract")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = args.folder or pathlib.Path(temporary), pathlib.Path(temporary) / "out"
        rows, force, rank = [], ["-o", out, "--force", "--threads", args.threads], args.rank

        def row(label, layers, *command):
            seconds, cpu, memory = timed(*command)
            rows.append({"what": label, "layers": layers, "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "mib": round(memory)})
            print(json.dumps(rows[-1]), flush=True)

        for layers in sorted({args.slice, args.layers}):
            own = folder / f"{layers}-layers"
            base, tuned = own / "base", own / "tuned"
            adapters = [own / f"adapter-{number}" for number in range(args.adapters)]
            if "combine" in args.only:
                for number, path in enumerate(adapters):
                    if not path.exists():
                        apart(adapter, path, layers, rank, number)
                given = [part for path in adapters for part in ("--adapter", f"{path}={1 / len(adapters)}")]
                row(f"`qmerge combine --rank {rank}`, {len(adapters)} LoRAs of rank {rank}", layers, QMERGE, "combine", *given, "--rank", rank, *force)
            for path, is_tuned in ((base, False), (tuned, True)):
                if not path.exists() and ("extract" in args.only or layers == args.slice and not is_tuned):
                    apart(model, path, layers, is_tuned)
            if "extract" in args.only:
                row(f"`qmerge extract --rank {rank}`, of a pair in bf16", layers, QMERGE, "extract", "--base", base, "--tuned", tuned, "--rank", rank, "--no-full", *force)
            if layers != args.slice:
                continue
            if "combine" in args.only:
                row("PEFT `add_weighted_adapter`, svd", layers, sys.executable, "-c", PEFT, base, rank, args.threads, *adapters)
            if "extract" in args.only and args.mergekit:
                made = ["--model", tuned, "--base-model", base, "--out-path", out / "mergekit", "--max-rank", rank, "--num-threads", args.threads, "--exclude-regex", "embed|norm|lm_head"]
                row("`mergekit-extract-lora`", layers, args.mergekit, "-m", "mergekit.scripts.extract_lora", *made)
        names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        said = subprocess.check_output([QMERGE, "--version"], text=True).strip()
        found = {"rows": rows, "program": said, "machine": f"{args.threads} threads on {len(names)} cores of {names[0]}", "date": str(datetime.date.today())}
        if args.write:
            (HERE.parent / "figures/arithmetic.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
