"""A model that each format's own library quantized, with an adapter merged into it: what is left of the adapter by each way of rounding, as JSON.

    formats.py MODEL16 ADAPTER TEXT OUT.json [--formats ct-int4,hqq] [--calibrate TEXT] [--tokens 1024] [--windows 4] [--context 512]
               [--title WORDS] [--folder DIR] [--ways nearest,fast,default]

MODEL16 is plain. Linear layers of its blocks are quantized by the library, as testdata/gen/formats.py calls it (which says what is to be installed); GPTQModel 7.7.0 and AutoRound
0.16.1 quantize the whole model, the first in five minutes. A format whose library is missing is left out. Then `qmerge merge` is run with --rounding nearest, --fast, and by default, and `qmerge compare` on TEXT. benches/figures/write.py puts OUT.json into the book.
"""

import argparse
import datetime
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent
QMERGE = os.environ.get("QMERGE", str(HERE.parent.parent / "target/release/qmerge"))
sys.path.insert(0, str(HERE.parent.parent / "crates/qmerge/testdata/gen"))
import formats as libraries  # noqa: E402


def compressed(layout, **weights):
    scheme = {"symmetric": True, "dynamic": False, **weights}
    return {
        "library": "compressed-tensors", "loads": "transformers, vLLM", "params": {"format": layout, **weights, "symmetric": True},
        "config": {
            "quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme, "input_activations": None, "output_activations": None}},
        },
    }


# How each is made, what `config.json` says of it, and which loaders read it (by their sources).
FORMATS = {
    "ct-int4": compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=64),
    "ct-int8": compressed("pack-quantized", num_bits=8, type="int", strategy="channel"),
    "ct-fp8": compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
    "ct-nvfp4": compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
    "ct-mxfp4": compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32),
    "modelopt": {
        "library": "modelopt", "loads": "vLLM, TensorRT-LLM", "params": {"quant_algo": "NVFP4"}, "config": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    },
    "mlx": {"library": "mlx-affine", "loads": "mlx-lm", "params": {"bits": 4, "group_size": 64}, "config": {"bits": 4, "group_size": 64, "mode": "affine"}},
    "hqq": {
        "library": "hqq", "loads": "hqq", "params": {"nbits": 4, "group_size": 64, "axis": 1, "compute_dtype": "torch.bfloat16"},
        "config": {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}},
    },
    "torchao": {"library": "torchao", "loads": "transformers, vLLM", "name": "int8", "params": {}, "config": {"quant_method": "torchao"}},
    "gptq": {"whole": "gptqmodel", "loads": "transformers, vLLM"},
    "awq": {"whole": "auto-round", "loads": "transformers, vLLM"},
}


def by_gptqmodel(model, folder):
    """GPTQ as GPTQModel runs it, calibrated on the pages of the book: 64 windows of 512 tokens."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "4")
    from gptqmodel import GPTQModel, QuantizeConfig
    from transformers import AutoTokenizer

    pages = sorted((HERE.parent.parent / "docs/src").rglob("*.md"))
    ids = AutoTokenizer.from_pretrained(model)("\n".join(page.read_text() for page in pages))["input_ids"]
    windows = [{"input_ids": ids[at : at + 512], "attention_mask": [1] * 512} for at in range(0, 64 * 512, 512)]
    of_model = GPTQModel.load(str(model), QuantizeConfig(bits=4, group_size=64, desc_act=False), device="cpu")
    of_model.quantize([window for window in windows if len(window["input_ids"]) == 512], batch_size=4)
    of_model.save(str(folder))


def by_auto_round(model, folder):
    """AWQ's layout with zeros, as AutoRound writes it, each value to the nearest (AutoRound's tuning takes hours on a CPU)."""
    from auto_round import AutoRound

    rounding = AutoRound(str(model), bits=4, group_size=64, sym=False, iters=0, disable_opt_rtn=True, device_map="cpu")
    rounding.quantize_and_save(str(folder / "made"), format="auto_awq")
    made = next((folder / "made").rglob("config.json")).parent
    for file in list(made.iterdir()):
        file.rename(folder / file.name)
    shutil.rmtree(folder / "made")


WHOLE = {"gptqmodel": by_gptqmodel, "auto-round": by_auto_round}


def quantize(name, model, folder):
    """Writes the model with the linear layers of its blocks as the library stores them."""
    about = FORMATS[name]
    if "whole" in about:
        folder.mkdir(parents=True)
        return WHOLE[about["whole"]](model, folder)
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*", "qmerge*", "README.md"))
    tensors = {}
    for file in sorted(pathlib.Path(model).glob("*.safetensors")):
        tensors.update(load_file(file))
    made = {}
    for key, tensor in tensors.items():
        module = key.removesuffix(".weight")
        if not (key.endswith("_proj.weight") and tensor.ndim == 2):
            made[key] = tensor
            continue
        old = {"src": tensor, "weight": torch.empty(0, dtype=torch.int32)}
        old.update({leaf: torch.empty(0, dtype=tensor.dtype) for leaf in ("scales", "biases", "deq")})
        case = {"name": about.get("name", name), "params": about["params"]}
        for leaf, part in libraries.LIBRARIES[about["library"]](case, old).items():
            if leaf == "deq" or leaf.startswith("plain."):
                continue
            part = torch.as_tensor(part).detach().contiguous().clone()
            if name == "mlx" and leaf == "weight":
                part = part.view(torch.uint32)
            own = leaf.replace("layer", module, 1) if leaf.startswith("layer") else f"{module}.{leaf}"
            made[own] = part
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = about["config"]
    if name == "mlx":
        config["quantization"] = about["config"]
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def qmerge(*arguments):
    """Runs the program; its standard output, and seconds of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([QMERGE, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser()
    for name in ("model", "adapter", "text", "out"):
        parser.add_argument(name)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--calibrate")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--title", default="")
    parser.add_argument("--folder")
    parser.add_argument("--ways", default="nearest,fast,default", help="measure these; of a format that OUT.json has, the others stay as they are there")
    args = parser.parse_args()
    folder = pathlib.Path(args.folder or tempfile.mkdtemp())
    out = pathlib.Path(args.out)
    found = json.loads(out.read_text()) if out.exists() else {"rows": {}}
    found.update(title=args.title, tokens=args.tokens, windows=args.windows, context=args.context)
    found.update(program=qmerge("--version")[0].strip(), date=str(datetime.date.today()))
    data = (["--calibrate", args.calibrate] if args.calibrate else []) + (["--calibration-tokens", args.tokens] if args.tokens else [])
    for name in args.formats.split(","):
        base = folder / name
        shutil.rmtree(base, ignore_errors=True)
        try:
            quantize(name, args.model, base)
        except (ImportError, RuntimeError) as missing:
            print(f"{name}: left out, {missing}", file=sys.stderr)
            continue
        row, merged = {**found["rows"].get(name, {}), "loads": FORMATS[name]["loads"]}, []
        ways = {"nearest": ["--rounding", "nearest"], "fast": ["--fast"], "default": data}
        ways = {way: options for way, options in ways.items() if way in args.ways.split(",")}
        for way, options in ways.items():
            target = folder / f"{name}-{way}"
            sources = ["--base", base, "--adapter", args.adapter, "-o", target, "--force", "--measure", "never"]
            _, seconds = qmerge("merge", *sources, *options)
            row[way] = {"cpu_seconds": round(seconds, 1)}
            merged += ["--merged", target]
        row["bytes"] = sum(file.stat().st_size for file in base.glob("*.safetensors"))
        text, _ = qmerge(
            "compare", "--base", base, "--adapter", args.adapter, *merged, "--text", args.text, "--windows", args.windows,
            "--context", args.context, "--continuation", 0, "--json",
        )
        models = json.loads(text)["models"]
        row["base_kl"] = models[0]["kl"]
        for way, model in zip(ways, models[2:]):
            row[way].update(gain_kept=model["gain_kept"], kl=model["kl"])
        found["rows"][name] = row
        out.write_text(json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(row), file=sys.stderr)
        for way in ways:
            shutil.rmtree(folder / f"{name}-{way}")
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
