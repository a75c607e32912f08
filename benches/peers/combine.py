"""Eight LoRAs of rank 64 made one of rank 64, by `qmerge combine` and by PEFT's add_weighted_adapter: processor time on the layers of a model of 1 B.

    pip install peft torch transformers
    python3 benches/peers/combine.py QMERGE [--layers 1] [--number 8] [--rank 64] [--no-peft] [--work DIR]

The layers are those of TinyLlama (2048 inputs, 5632 inside, 22 of them), with random factors on all seven matrices. Prints seconds of all threads for these layers, and for 22, and
how far the two results are apart.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file, save_file

HIDDEN, INSIDE, KEYS, LAYERS = 2048, 5632, 256, 22
SHAPES = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
          "mlp.gate_proj": (INSIDE, HIDDEN), "mlp.up_proj": (INSIDE, HIDDEN), "mlp.down_proj": (HIDDEN, INSIDE)}


def adapter(folder, layers, rank, seed):
    os.makedirs(folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for name, (outputs, inputs) in SHAPES.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / inputs**0.5
            tensors[f"{path}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.02
    save_file(tensors, f"{folder}/adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": sorted({name.split(".")[1] for name in SHAPES})}
    with open(f"{folder}/adapter_config.json", "w") as file:
        json.dump(config, file)


def model(layers):
    import transformers

    config = transformers.LlamaConfig(hidden_size=HIDDEN, intermediate_size=INSIDE, num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=4, vocab_size=8)
    return transformers.LlamaForCausalLM(config)


def spent(who):
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def told(what, seconds, wall, layers):
    print(f"{what}: {seconds:.1f} s of processor time ({wall:.1f} s by the clock) for {layers} layers, {seconds * LAYERS / layers:.0f} s for {LAYERS}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("qmerge")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--number", type=int, default=8)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--work", default=None)
    args = parser.parse_args()
    work = args.work or tempfile.mkdtemp()
    folders = [os.path.join(work, f"adapter{number}") for number in range(args.number)]
    for number, folder in enumerate(folders):
        if not os.path.exists(folder):
            adapter(folder, args.layers, args.rank, number)
    out = os.path.join(work, "combined")
    before, start = spent(resource.RUSAGE_CHILDREN), time.time()
    words = [word for folder in folders for word in ("--adapter", f"{folder}=0.5")]
    done = subprocess.run([args.qmerge, "combine", *words, "--method", "svd", "--rank", str(args.rank), "-o", out, "--force"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    told("qmerge combine --method svd", spent(resource.RUSAGE_CHILDREN) - before, time.time() - start, args.layers)
    if not args.no_peft:
        from peft import PeftModel

        held = PeftModel.from_pretrained(model(args.layers), folders[0], adapter_name="0")
        for number, folder in enumerate(folders[1:], 1):
            held.load_adapter(folder, adapter_name=str(number))
        before, start = spent(resource.RUSAGE_SELF), time.time()
        held.add_weighted_adapter([str(number) for number in range(args.number)], [0.5] * args.number, "all", combination_type="svd", svd_rank=args.rank)
        told("PEFT add_weighted_adapter svd", spent(resource.RUSAGE_SELF) - before, time.time() - start, args.layers)
        own = load_file(f"{out}/adapter_model.safetensors")
        worst = 0.0
        for layer in range(args.layers):
            for name in SHAPES:
                path = f"base_model.model.model.layers.{layer}.{name}"
                theirs = held.get_submodule(path)
                one = theirs.lora_B["all"].weight.detach().double() @ theirs.lora_A["all"].weight.detach().double() * theirs.scaling["all"]
                other = own[f"{path}.lora_B.weight"].double() @ own[f"{path}.lora_A.weight"].double()
                worst = max(worst, ((one - other).norm() / other.norm()).item())
        print(f"products differ by {worst:.1e} of their length at most")
    if args.work is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
