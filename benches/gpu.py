"""Calibration on a GPU: what torch takes there against what qmerge takes on the CPU, and a model of 7 B.

    gpu.py QMERGE WORK [--part check|training|offload|large|threads|own ...]

Needs the Python package, torch, transformers, peft and accelerate, and a GPU. WORK is a folder with 45 GB of room for the model of 7 B, which has random weights. Each part
prints lines of JSON as it goes.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy
import qmerge
import qmerge.torch
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model


def say(**what):
    print(json.dumps(what), flush=True)


def timed(run):
    torch.cuda.synchronize()
    start = time.time()
    result = run()
    torch.cuda.synchronize()
    return result, round(time.time() - start, 2)


def program(*args):
    """Runs qmerge: seconds, CPU seconds, and the memory that it says it took (the system's figure counts what this process had when it began another)."""
    start = time.time()
    pid = os.posix_spawn(args[0], [str(a) for a in args], os.environ, file_actions=[
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "out.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
        (os.POSIX_SPAWN_OPEN, 2, "err.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644),
    ])
    _, status, used = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        say(failed=[str(a) for a in args], code=code, error=Path("err.txt").read_text()[-2000:])
    return {"seconds": round(time.time() - start, 1), "cpu": round(used.ru_utime + used.ru_stime, 1), "memory": (re.findall(r"([\d.]+ [kMG]B) of memory", Path("out.txt").read_text()) or [None])[0]}


def moments(path):
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    found = {}
    for kept in json.loads(header.pop("__metadata__")["qmerge.inputs"]):
        entry = header[kept["weights"][0]]
        start, end = (8 + length + at for at in entry["data_offsets"])
        values = numpy.frombuffer(data[start:end], "<f4").reshape(entry["shape"])
        found.update({name: values for name in kept["weights"]})
    return found


def apart(a, b):
    """The largest relative distance of two files' matrices."""
    a, b = moments(a), moments(b)
    assert a.keys() == b.keys(), set(a) ^ set(b)
    return max(float(numpy.linalg.norm(a[n] - b[n]) / numpy.linalg.norm(a[n])) for n in a)


def windows(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "base-bf16")
    ids = tokenizer((folder / "calibration.txt").read_text(), add_special_tokens=False)["input_ids"]
    size = min(256, json.loads((folder / "base-bf16/config.json").read_text())["max_position_embeddings"])
    cut = [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]
    cut = cut[: len(cut) - min(len(cut) // 8, 4)]
    count = min(24, len(cut))
    return [cut[at * len(cut) // count] for at in range(count)]


def live(folder, device, dtype=torch.float32):
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base-bf16", dtype=dtype).to(device)
    return PeftModel.from_pretrained(base, folder / "adapter").to(device)


def judged(exe, demo, name, calibration=None):
    more = ["--calibration", calibration] if calibration else []
    program(exe, "merge", "--base", demo / "base-nf4", "--adapter", demo / "adapter", "-o", name, "--measure", "never", "--force", *more)
    program(exe, "compare", "--base", demo / "base-nf4", "--adapter", demo / "adapter", "--merged", name, "--text", demo / "eval.txt", "--continuation", "0", "--report", f"{name}.json")
    found = json.loads(Path(f"{name}.json").read_text())
    return next((m for m in found.get("models", []) if m.get("role") == "merged" or m.get("name", "").endswith(name)), found)


def check(exe, demo):
    """The same moments from torch on the GPU, torch on the CPU and qmerge; what merges made of them keep."""
    program(exe, "calibrate", "--base", demo / "base-bf16", "--adapter", demo / "adapter", "--text", demo / "calibration.txt", "-o", "native.safetensors", "--force")
    program(exe, "calibrate", "--base", demo / "base-nf4", "--adapter", demo / "adapter", "--text", demo / "calibration.txt", "-o", "native-nf4.safetensors", "--force")
    ids = windows(demo)
    qmerge.torch.calibrate(live(demo, "cpu"), ids, "cpu.safetensors", force=True)
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        model = live(demo, "cuda")
        _, seconds = timed(lambda: qmerge.torch.calibrate(model, ids, f"gpu-{precision}.safetensors", force=True))
        say(part="check", precision=precision, seconds=seconds, native=apart("native.safetensors", f"gpu-{precision}.safetensors"), cpu=apart("cpu.safetensors", f"gpu-{precision}.safetensors"))
    torch.set_float32_matmul_precision("highest")
    for dtype in (torch.bfloat16, torch.float16):
        name = f"gpu-{str(dtype)[6:]}.safetensors"
        qmerge.torch.calibrate(live(demo, "cuda", dtype), ids, name, force=True)
        say(part="check", dtype=str(dtype), native=apart("native.safetensors", name))
    for name in ("native-nf4", "gpu-highest", "gpu-bfloat16"):
        say(part="check", merged_with=name, judged=judged(exe, demo, f"merged-{name}", f"{name}.safetensors"))
    say(part="check", own=str(qmerge.torch.calibrate(live(demo, "cuda", torch.bfloat16), None, "gpu-own.safetensors", force=True)))
    say(part="check", merged_with="gpu-own", judged=judged(exe, demo, "merged-own", "gpu-own.safetensors"))


def training(exe, demo):
    """Moments of the last steps of training in mixed precision; the merge finds them beside the adapter."""
    ids = windows(demo)
    base = transformers.AutoModelForCausalLM.from_pretrained(demo / "base-bf16", dtype=torch.bfloat16)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    data = [{"input_ids": one, "labels": one} for one in ids]
    shutil.rmtree("trained", ignore_errors=True)
    args = transformers.TrainingArguments("trained", per_device_train_batch_size=4, max_steps=40, learning_rate=1e-3, bf16=True, tf32=True, gradient_checkpointing=True,
                                          gradient_checkpointing_kwargs={"use_reentrant": False}, report_to=[], save_strategy="no", disable_tqdm=True)
    transformers.Trainer(model, args, train_dataset=data, callbacks=[qmerge.torch.MomentsCallback(steps=8)]).train()
    model.save_pretrained("trained")
    program(exe, "merge", "--base", demo / "base-nf4", "--adapter", "trained", "-o", "merged-trained", "--force")
    say(part="training", files=sorted(os.listdir("trained")), merge=Path("out.txt").read_text()[-900:], errors=Path("err.txt").read_text()[-500:])


def offload(exe, demo):
    """A model whose layers accelerate spread over GPU and CPU gives the moments of a whole one."""
    from accelerate import dispatch_model

    ids = windows(demo)
    base = transformers.AutoModelForCausalLM.from_pretrained(demo / "base-bf16", dtype=torch.float32)
    layers = len(base.model.layers)
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 0, "lm_head": 0}
    places |= {f"model.layers.{i}": 0 if i < layers // 2 else "cpu" for i in range(layers)}
    base = dispatch_model(base, places, main_device=0)
    model = PeftModel.from_pretrained(base, demo / "adapter")
    qmerge.torch.calibrate(model, ids, "offloaded.safetensors", force=True)
    say(part="offload", places=sorted({str(p.device) for p in model.parameters()}), cpu=apart("cpu.safetensors", "offloaded.safetensors"))


SIZES = dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32, vocab_size=32000, max_position_embeddings=4096)


def made(exe, layers, name):
    """A random Llama of so many layers with a random adapter, in bf16 and NF4; the live model."""
    transformers.set_seed(0)
    config = transformers.LlamaConfig(num_hidden_layers=layers, tie_word_embeddings=False, dtype="bfloat16", **SIZES)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        base = transformers.AutoModelForCausalLM.from_config(config)
        torch.set_default_dtype(torch.float32)
    base.save_pretrained(f"{name}-bf16", max_shard_size="4GB")
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    with torch.no_grad():
        for part, value in model.named_parameters():
            if "lora_B" in part:
                value.normal_(0, 0.002)
    model.save_pretrained(f"{name}-adapter")
    say(part=name, parameters=sum(p.numel() for p in base.parameters()))
    say(part=name, convert_to_nf4=program(exe, "convert", "--base", f"{name}-bf16", "--to", "nf4", "-o", f"{name}-nf4", "--force"))
    return model


def large(exe, _demo):
    """7 B: calibrated on the GPU, merged on the CPU."""
    model, seconds = timed(lambda: made(exe, 32, "7b"))
    say(part="large", made=seconds)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 32000, (24, 256), generator=generator).tolist()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found, seconds = timed(lambda: qmerge.torch.calibrate(model, ids, "7b-moments.safetensors", dtype="bf16", force=True))
    say(part="large", calibrate=seconds, bytes=os.path.getsize("7b-moments.safetensors"), gpu_before=before, gpu_most=torch.cuda.max_memory_allocated())
    del model
    torch.cuda.empty_cache()
    shutil.rmtree("7b-bf16")
    for threads in ("16", "2"):
        subprocess.run([exe, "merge", "--base", "7b-nf4", "--adapter", "7b-adapter", "-o", "x", "--threads", threads, "--dry-run"], stdin=subprocess.DEVNULL)
    merged = program(exe, "merge", "--base", "7b-nf4", "--adapter", "7b-adapter", "-o", "7b-merged", "--calibration", "7b-moments.safetensors", "--measure", "never", "--force")
    say(part="large", merge_calibrated_on_gpu=merged, out=Path("out.txt").read_text()[:400])
    os.remove("7b-moments.safetensors")
    shutil.rmtree("7b-merged", ignore_errors=True)


def threads(exe, _demo):
    """Two layers of 7 B by number of threads, with the model's own text."""
    made(exe, 2, "two")
    for count in ("16", "8", "4", "2"):
        used = program(exe, "merge", "--base", "two-nf4", "--adapter", "two-adapter", "-o", "two-merged", "--threads", count, "--measure", "never", "--force")
        say(part="threads", threads=int(count), **used)


def own(exe, _demo):
    """7 B, calibrated by running it on the CPU: the default."""
    used = program(exe, "merge", "--base", "7b-nf4", "--adapter", "7b-adapter", "-o", "7b-own", "--force")
    say(part="own", merge_default=used, out=Path("out.txt").read_text()[:400], progress=Path("err.txt").read_text()[-600:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("qmerge")
    parser.add_argument("work")
    parser.add_argument("--part", nargs="+", default=["check", "training", "offload", "large", "own", "threads"])
    options = parser.parse_args()
    exe, demo = str(Path(options.qmerge).resolve()), Path(__file__).resolve().parents[1] / "crates/qmerge-cli/demo"
    os.makedirs(options.work, exist_ok=True)
    os.chdir(options.work)
    say(gpu=torch.cuda.get_device_name(), torch=torch.__version__, transformers=transformers.__version__, cpus=os.cpu_count())
    for part in options.part:
        start = time.time()
        try:
            globals()[part](exe, demo)
        except Exception as error:
            say(part=part, error=f"{type(error).__name__}: {error}")
        say(part=part, all=round(time.time() - start, 1))
