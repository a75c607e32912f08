"""Weights of quantized checkpoints as the libraries that define their formats write and read them.

    python formats.py ../formats            what each library makes of a case's `src` is compared with the case
    python formats.py ../formats --write    and written in its place
    python formats.py ../formats ct_ hqq_   the cases whose names begin so

A case is a file with its source (`src`), the tensors that the library stores, and what it decodes them to (`deq`); `index.json` has its parameters. A case whose library is not
installed is left out, and said so. Needs torch, numpy and safetensors; written with compressed-tensors 0.20.0, transformers 5.24.0, gptqmodel 7.7.0, autoawq 0.2.9, hqq 0.2.8,
mlx 0.32.4, torchao 0.18.0, optimum-quanto 0.2.7 and nvidia-modelopt 0.47.0, all on a CPU.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file


def compressed_tensors(case, old):
    """Scales by the extremes of each group, in the type of the weight, as llm-compressor's observers take them; codes by the compressor."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    params, weight = case["params"], old["src"]
    keys = ("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure")
    args = {key: params[key] for key in keys if params.get(key) is not None}
    if params["format"] == "nvfp4-pack-quantized":
        args.update(scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn)
    if params["format"].startswith("mxfp"):
        args.update(scale_dtype=torch.uint8, zp_dtype=torch.uint8)
    args = QuantizationArgs(dynamic=False, **args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    rows, cols = weight.shape
    if args.strategy == "block":
        high, wide = args.block_structure
        padded = torch.nn.functional.pad(weight, (0, -cols % wide, 0, -rows % high))
        tiles = padded.unflatten(0, (-1, high)).unflatten(-1, (-1, wide)).transpose(1, 2)
        low, most = tiles.amin((-2, -1)), tiles.amax((-2, -1))
    else:
        tiles = weight.unflatten(-1, (-1, args.group_size or cols))
        low, most = tiles.amin(-1), tiles.amax(-1)
    # Of several layers that share an input, llm-compressor takes the largest; of one, its own.
    second = generate_gparam(weight.amin(), weight.amax()) if args.strategy == "tensor_group" else None
    scale, zero = calculate_qparams(low, most, args, global_scale=second)
    stored = {"weight": weight, "weight_scale": scale}
    if not args.symmetric:
        stored["weight_zero_point"] = zero
    if second is not None:
        stored["weight_global_scale"] = second
    compressor = BaseCompressor.get_value_from_registry(params["format"])
    stored = compressor.compress(stored, scheme)
    decoded = compressor.decompress(dict(stored), scheme)["weight"]
    return {**stored, "deq": decoded.to(weight.dtype)}


def fp8_block(case, old):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    params = case["params"]

    class Settings:
        weight_block_size = params["block"]
        scale_fmt = params["scale_fmt"]

    class Quantizer:
        quantization_config = Settings

    if "src" not in old:
        # Experts of 4 bits are only read.
        stored = {name: old[name] for name in ("weight", "weight_scale_inv")}
    else:
        made = Fp8Quantize(Quantizer).convert({"weight": old["src"]})
        stored = {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
    read = Fp8Dequantize(Quantizer).convert(stored, full_layer_name=None)["weight"]
    # A scale of 32 bits has its own type there; a loaded model has the parameter's.
    return {**stored, "deq": read.to(torch.bfloat16)}


def gpt_oss(case, old):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    stored = {name: old[name] for name in ("blocks", "scales")}
    return {**stored, "deq": convert_moe_packed_tensors(stored["blocks"], stored["scales"])}


def gptq(case, old):
    """Scales by the extremes of each group, zeros and the order of groups as the case has them; packed by GPTQModel."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    params, weight, index = case["params"], old["src"].float(), old["g_idx"].long()
    bits, symmetric = params["bits"], params["sym"]
    size = params["group_size"] if params["group_size"] > 0 else params["in_features"]
    most = 2**bits - 1
    scales, zeros = [], []
    for group in range(params["in_features"] // size):
        # Groups are runs of the source; the index is given to them afterwards.
        values = weight[:, group * size : (group + 1) * size]
        low, high = values.amin(1).clamp(max=0), values.amax(1).clamp(min=0)
        if symmetric:
            high = torch.maximum(high, -low)
            low = -high
        empty = (low == 0) & (high == 0)
        low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
        scales.append((high - low) / most)
        zeros.append(torch.full_like(low, (most + 1) / 2) if symmetric else torch.round(-low / scales[-1]))
    linear = torch.nn.Linear(params["in_features"], params["out_features"], bias=False)
    linear.weight.data = weight
    packed = TorchLinear(
        bits=bits, group_size=params["group_size"], sym=symmetric, desc_act=params["desc_act"], bias=False,
        in_features=params["in_features"], out_features=params["out_features"], register_buffers=True,
    )
    packed.pack_original(linear, torch.stack(scales, 1), torch.stack(zeros, 1), g_idx=index)
    stored = {"qweight": packed.qweight, "qzeros_v2": packed.qzeros.clone(), "scales": packed.scales, "g_idx": packed.g_idx}
    decoded = packed.dequantize_weight().T.contiguous()
    convert_gptq_v2_to_v1_format_module(packed, bits=bits, pack_dtype=torch.int32)
    return {**stored, "qzeros_v1": packed.qzeros, "deq": decoded}


def awq(case, old):
    from awq.modules.linear import WQLinear_GEMM, WQLinear_GEMV, WQLinear_GEMVFast
    from awq.utils.packing_utils import dequantize_gemm

    params, weight = case["params"], old["src"]
    groups = weight.reshape(-1, params["group_size"])
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scales = (high - low).clamp(min=1e-5) / 15
    zeros = (-torch.round(low / scales)).clamp(0, 15)
    scales, zeros = (of.view(weight.shape[0], -1) for of in (scales, zeros))
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    stored = {}
    for name, layout in [("", WQLinear_GEMM), ("gemv.", WQLinear_GEMV), ("gemv_fast.", WQLinear_GEMVFast)]:
        turned = (scales.T.contiguous(), zeros.T.contiguous()) if layout is WQLinear_GEMM else (scales, zeros)
        made = layout.from_linear(linear, 4, params["group_size"], False, *turned)
        stored.update({name + leaf: getattr(made, leaf) for leaf in ("qweight", "qzeros", "scales")})
    decoded = dequantize_gemm(stored["qweight"], stored["qzeros"], stored["scales"], 4, params["group_size"])
    return {**stored, "deq": decoded.T.contiguous()}


def hqq(case, old):
    """`plain.` is what the quantizer makes without its optimizer."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear, Quantizer

    params = case["params"]
    about = BaseQuantizeConfig(nbits=params["nbits"], group_size=params["group_size"], axis=params["axis"])
    linear = torch.nn.Linear(old["src"].shape[1], old["src"].shape[0], bias=False)
    linear.weight.data = old["src"].float()
    dtype = getattr(torch, params["compute_dtype"].removeprefix("torch."))
    made = HQQLinear(linear, about, compute_dtype=dtype, device="cpu")
    weights = {**about["weight_quant_params"], "optimize": False}
    codes, meta = Quantizer.quantize(old["src"].float(), device="cpu", compute_dtype=dtype, **weights)
    plain = {"plain.W_q": codes, "plain.scale": meta["scale"], "plain.zero": meta["zero"]}
    return {**made.state_dict(), **plain, "deq": made.dequantize()}


def mlx(case, old):
    import mlx.core as mx
    import numpy

    params, source = case["params"], old["src"]
    given = mx.array(source.float().numpy()).astype(getattr(mx, str(source.dtype).removeprefix("torch.")))
    mode = params.get("mode", "affine")
    made = mx.quantize(given, group_size=params["group_size"], bits=params["bits"], mode=mode)
    decoded = mx.dequantize(*made, group_size=params["group_size"], bits=params["bits"], mode=mode)

    def back(array, dtype):
        if dtype in (torch.float16, torch.bfloat16):
            return torch.from_numpy(numpy.array(array.astype(mx.float32))).to(dtype)
        return torch.from_numpy(numpy.array(array)).view(dtype)

    named = dict(zip(("weight", "scales", "biases"), made))
    return {name: back(array, old[name].dtype) for name, array in {**named, "deq": decoded}.items()}


def torchao(case, old):
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    linear = torch.nn.Linear(old["src"].shape[1], old["src"].shape[0], bias=False, dtype=old["src"].dtype)
    linear.weight.data = old["src"]
    model = torch.nn.ModuleDict({"layer": linear})
    quantize_(model, Int8WeightOnlyConfig(version=2) if "int8" in case["name"] else Float8WeightOnlyConfig(version=2))
    stored, _ = flatten_tensor_state_dict(model.state_dict())
    return {**stored, "deq": model["layer"].weight.dequantize().to(old["src"].dtype)}


def quanto(case, old):
    from optimum import quanto as library

    linear = torch.nn.Linear(old["src"].shape[1], old["src"].shape[0], bias=False, dtype=old["src"].dtype)
    linear.weight.data = old["src"]
    model = torch.nn.ModuleDict({"layer": linear})
    library.quantize(model, weights=getattr(library, case["params"]["qtype"]))
    library.freeze(model)
    stored = {name: tensor for name, tensor in model.state_dict().items() if name in old}
    return {**stored, "deq": model["layer"].weight.dequantize()}


def bitnet(case, old):
    """A layer of transformers' ternary weights, run on the unit matrix."""
    from transformers.integrations.bitnet import pack_weights, unpack_weights

    packed = pack_weights(old["ternary"].float())
    decoded = unpack_weights(packed, dtype=torch.float32) / old["weight_scale"].float()
    return {"weight": packed, "weight_scale": old["weight_scale"], "deq": decoded}


def modelopt(case, old):
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    weight = old["src"]
    if case["params"]["quant_algo"] == "FP8":
        # Its export does no more; a class that does it wants a GPU.
        scale = weight.abs().amax().float() / 448
        codes = (weight / scale).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale": scale, "deq": (codes.float() * scale).to(weight.dtype)}
    made, scale, second = NVFP4QTensor.quantize(weight, 16)
    decoded = made.dequantize(dtype=weight.dtype, scale=scale, double_scale=second, block_sizes={-1: 16})
    return {"weight": made._quantized_data, "weight_scale": scale, "weight_scale_2": second, "deq": decoded}


LIBRARIES = {
    "compressed-tensors": compressed_tensors, "fp8-block": fp8_block, "gpt-oss-mxfp4": gpt_oss, "gptq": gptq, "awq": awq, "hqq": hqq, "mlx-affine": mlx,
    "mlx-mxfp4": mlx, "mlx-mxfp8": mlx, "mlx-nvfp4": mlx, "torchao": torchao, "quanto": quanto, "bitnet": bitnet, "modelopt": modelopt,
}


def same(a, b):
    a, b = a.detach().contiguous(), b.detach().contiguous()
    if a.dtype == b.dtype and a.shape == b.shape and a.numel():
        return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    return a.dtype == b.dtype and a.shape == b.shape


def main():
    folder, write = pathlib.Path(sys.argv[1]), "--write" in sys.argv
    wanted = tuple(word for word in sys.argv[2:] if not word.startswith("--"))
    differ = 0
    for case in json.loads((folder / "index.json").read_text()):
        name = case["name"]
        if wanted and not name.startswith(wanted):
            continue
        path = folder / f"{name}.safetensors"
        old = load_file(path)
        try:
            made = LIBRARIES[case["format"]](case, old)
        except (ImportError, RuntimeError) as missing:
            print(f"{name}: left out, {str(missing).splitlines()[0]}")
            continue
        made = {key: torch.as_tensor(tensor).detach().contiguous() for key, tensor in made.items()}
        lacking = [key for key in old if key not in made and key not in ("src", "ternary")]
        changed = [key for key, tensor in made.items() if key not in old or not same(tensor, old[key])]
        print(f"{name}: " + (f"differs in {changed + lacking}" if changed or lacking else "the same"))
        differ += bool(changed or lacking)
        if write and changed:
            save_file({**{key: old[key].contiguous() for key in ("src", "ternary") if key in old}, **made}, path)
    sys.exit(1 if differ and not write else 0)


if __name__ == "__main__":
    main()
