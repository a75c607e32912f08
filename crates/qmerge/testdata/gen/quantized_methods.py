"""Makes testdata/peft-quantized: quantized copies of a tiny model, and what PEFT makes of their decoded values with the adapters of testdata/peft-methods.

    pip install peft==0.21.2 torch==2.15.0 transformers==5.24.0 bitsandbytes==0.50.2
    OMP_NUM_THREADS=1 python quantized_methods.py ../peft-quantized ../peft-methods

FORMAT/ is peft-methods/bases/llama-f32 quantized: by bitsandbytes (nf4, int8), and as GPTQ and DeepSeek's FP8 store it, with scales that are powers of two, so that
decoding rounds nothing. FORMAT.safetensors holds `CASE/TENSOR`, the first rows of the tensors that PEFT's merge changes in the model with the decoded values in f32; one
case for each method. FRoD's U is made again of the V that was loaded, by PEFT's own function: PEFT makes it of the V that it finds for the base before it loads the file's.
mixed.safetensors is the same of the plain base in f32 and a FRoD whose V is stored in bf16.
"""

import json
import os
import shutil
import sys
import warnings

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import torch
import transformers
from bitsandbytes import functional as bnb
from peft import PeftModel
from peft.tuners.frod.layer import FrodLayer
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
OUT, METHODS = (sys.argv[1:] + ["../peft-quantized", "../peft-methods"][len(sys.argv) - 1 :])[:2]
BASE = os.path.join(METHODS, "bases", "llama-f32")
ROWS = 4
GROUP = 16


def nf4(name, weight):
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    stored = {f"{name}.weight": packed} | {f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    # Written out: on a CPU the library's own kernel of this version takes the scales of other blocks.
    scales = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten().long()
    return stored, (state.code[codes].reshape(-1, state.blocksize) * scales[:, None]).reshape(weight.shape)


def int8(name, weight):
    scales = weight.abs().amax(1)
    codes = torch.round(weight * (127 / scales[:, None])).to(torch.int8)
    stored = {f"{name}.weight": codes, f"{name}.SCB": scales, f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, bnb.int8_vectorwise_dequant(codes, scales)


def power(x):
    """The powers of two from which on nothing overflows."""
    return torch.exp2(torch.ceil(torch.log2(x)))


def gptq(name, weight):
    outputs, inputs = weight.shape
    groups = weight.reshape(outputs, inputs // GROUP, GROUP)
    low, high = groups.amin(2), groups.amax(2)
    scale = power((high - low) / 15)
    zero = torch.round(-low / scale).clamp(1, 15)
    codes = (torch.round(groups / scale[..., None]) + zero[..., None]).clamp(0, 15)
    decoded = ((codes - zero[..., None]) * scale[..., None]).reshape(outputs, inputs)

    def words(values):
        """Eight values of 4 bits to a word, along the first dimension."""
        values = values.to(torch.int64).reshape(values.shape[0] // 8, 8, -1)
        packed = sum(values[:, at] << (4 * at) for at in range(8))
        return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)

    stored = {
        f"{name}.qweight": words(codes.reshape(outputs, inputs).T.contiguous()),
        # One less is stored.
        f"{name}.qzeros": words((zero - 1)).T.contiguous(),
        f"{name}.scales": scale.T.contiguous().to(torch.float16),
        f"{name}.g_idx": (torch.arange(inputs) // GROUP).to(torch.int32),
    }
    return stored, decoded


def fp8(name, weight):
    scale = power(weight.abs().amax() / 448)
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {f"{name}.weight": codes, f"{name}.weight_scale_inv": scale.reshape(1, 1)}, codes.float() * scale


FORMATS = {
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
                  "bnb_4bit_compute_dtype": "float32", "bnb_4bit_quant_storage": "uint8"}),
    "int8": (int8, {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False, "checkpoint_format": "gptq"}),
    "fp8": (fp8, {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}),
}


def cases():
    """One case for each method."""
    known = {}
    for case in sorted(os.listdir(METHODS), key=lambda case: (len(case), case)):
        path = os.path.join(METHODS, case, "adapter", "adapter_config.json")
        if case.endswith("-llama-f32") and "embedding" not in case:
            known.setdefault(json.load(open(path))["peft_type"], case)
    return sorted(known.values())


def merged(decoded, case):
    """What PEFT's merge changes, the first rows of it."""
    model = transformers.LlamaForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model.load_state_dict(decoded, strict=False)
    model = PeftModel.from_pretrained(model, os.path.join(METHODS, case, "adapter")).eval()
    consistent(model)
    after = model.merge_and_unload().state_dict()
    changed = {name: after[name] for name, tensor in decoded.items() if not torch.equal(after[name], tensor)}
    assert changed, case
    return {f"{case}/{name}": tensor[:ROWS].contiguous().clone() for name, tensor in changed.items()}


def consistent(model):
    for layer in model.modules():
        if isinstance(layer, FrodLayer):
            u, _ = layer._calculate_frod_u_and_lambda(layer.frod_V["default"], layer.get_base_layer().weight)
            layer.frod_U["default"] = u


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    base = load_file(os.path.join(BASE, "model.safetensors"))
    for format, (quantize, settings) in FORMATS.items():
        folder = os.path.join(OUT, format)
        os.makedirs(folder)
        stored, decoded = {}, {}
        for name, tensor in base.items():
            if name.endswith("_proj.weight"):
                codes, decoded[name] = quantize(name.removesuffix(".weight"), tensor)
                stored |= codes
            else:
                stored[name] = decoded[name] = tensor
        save_file({name: tensor.contiguous() for name, tensor in stored.items()}, os.path.join(folder, "model.safetensors"), {"format": "pt"})
        config = json.load(open(os.path.join(BASE, "config.json")))
        json.dump({**config, "quantization_config": settings}, open(os.path.join(folder, "config.json"), "w"), indent=2, sort_keys=True)
        out = {}
        for case in cases():
            out |= merged(decoded, case)
        save_file(out, os.path.join(OUT, f"{format}.safetensors"), {"format": "pt"})
        print(format, len(out), os.path.getsize(os.path.join(OUT, f"{format}.safetensors")))
    save_file(merged(base, "frod-llama-bf16"), os.path.join(OUT, "mixed.safetensors"), {"format": "pt"})
