"""Random LoRAs of the models of `gguf_files.py`, and what llama.cpp's `convert_lora_to_gguf.py` makes of them, known by a hash of all names, dimensions and data in the order of names.

    python gguf_lora.py LLAMA_CPP ../gguf      needs torch, transformers, safetensors and gguf

LLAMA_CPP is a checkout of the release that llama-cpp-python has. Written with the llama.cpp of llama-cpp-python 0.3.36.
"""

import hashlib
import json
import os
import pathlib
import runpy
import sys

import torch

LLAMA_CPP, FOLDER = os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path[:0] = [LLAMA_CPP, os.path.join(LLAMA_CPP, "gguf-py")]

import gguf  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    # Input and output embeddings that are two tensors, and a rank of its own.
    "llama-pieces": ([*LINEAR, "lm_head"], ["embed_tokens"], {"down_proj": 3}),
    "qwen2": (LINEAR, [], {}),
    "gemma3": (LINEAR, [], {}),
    # Each expert's matrices, which become stacks.
    "qwen3moe": (["q_proj", "gate_proj", "up_proj", "down_proj"], [], {}),
    # Of models that see, whose names begin otherwise.
    "qwen3vlsees": (LINEAR, [], {}),
    "llavasees": (["o_proj", "gate_proj", "up_proj", "down_proj"], [], {}),
    "phi3": (["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], [], {}),
    # Two halves of one weight, which are two in a file. The converter leaves factors of queries and keys in the folder's order here, though the file has another.
    "granitehybrid": (["v_proj", "o_proj", "input_linear", "output_linear"], [], {"input_linear": 3}),
}


def adapter(model, folder, linear, tables, ranks):
    random = torch.Generator().manual_seed(len(model))
    put = lambda *shape: (torch.randn(*shape, generator=random) * 0.1).float()
    tensors = {}
    for name, weight in load_file(FOLDER / "made" / model / "model.safetensors").items():
        module, leaf = name.rsplit(".", 1)
        last = module.rsplit(".", 1)[-1]
        rank = ranks.get(last, 4)
        rows, *columns = weight.shape
        own = "base_model.model." + module
        if leaf == "weight" and last in linear:
            tensors[own + ".lora_A.weight"], tensors[own + ".lora_B.weight"] = put(rank, *columns), put(rows, rank)
        elif last in tables:
            tensors[own + ".lora_embedding_A"], tensors[own + ".lora_embedding_B"] = put(rank, rows), put(*columns, rank)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = dict(peft_type="LORA", task_type="CAUSAL_LM", r=4, lora_alpha=6, rank_pattern=ranks, target_modules=linear + tables)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")


def main():
    expected = {}
    for model, (linear, tables, ranks) in CASES.items():
        folder = FOLDER / "lora" / model
        adapter(model, folder, linear, tables, ranks)
        sys.argv = ["convert_lora_to_gguf.py", "--base", str(FOLDER / "made" / model), "--outfile", "lora.gguf", str(folder)]
        runpy.run_path(os.path.join(LLAMA_CPP, "convert_lora_to_gguf.py"), run_name="__main__")
        whole = hashlib.sha256()
        reader = gguf.GGUFReader("lora.gguf")
        for tensor in sorted(reader.tensors, key=lambda tensor: tensor.name):
            whole.update(f"{tensor.name} {[int(n) for n in reversed(tensor.shape)]}".encode() + tensor.data.tobytes())
        expected[model] = {"tensors": len(reader.tensors), "hash": whole.hexdigest(), "alpha": float(reader.fields["adapter.lora.alpha"].contents()), "architecture": reader.fields["general.architecture"].contents()}
    os.remove("lora.gguf")
    (FOLDER / "lora" / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


main()
