"""Takes the numbers of the book's figures from files, and writes them to numbers.json, which draw.py draws.

    qmerge demo
    for method in nearest keep stochastic gptq descent adapter; do
        qmerge merge --base qmerge-demo/base-nf4 --adapter qmerge-demo/adapter -o demo-$method --rounding $method
    done
    qmerge calibrate --base qmerge-demo/base-nf4 --adapter qmerge-demo/adapter -o moments.safetensors
    python3 pictures.py qmerge-demo moments.safetensors demo-* [--large BASE ADAPTER compare.json]

`--large` adds the figures of a larger model: the sizes of its delta, and what `qmerge compare --report compare.json` found of merges whose names
end in the method's. Nothing here comes from qmerge but the files: weights are decoded, and moments applied, by numpy.
"""

import json
import os
import sys

import numpy

# bitsandbytes' NF4 table; the file's own quant_map is what is used.
DTYPES = {"F32": "<f4", "U8": "u1", "F16": "<f2", "I8": "i1"}


class Checkpoint:
    def __init__(self, path):
        if os.path.isdir(path):
            names = ("model.safetensors", "adapter_model.safetensors")
            path = next(os.path.join(path, name) for name in names if os.path.exists(os.path.join(path, name)))
        self.data = numpy.memmap(path, mode="r")
        size = int(self.data[:8].view("<u8")[0])
        self.header = json.loads(self.data[8 : 8 + size].tobytes())
        self.metadata = self.header.pop("__metadata__", {})
        self.start = 8 + size

    def read(self, name):
        entry = self.header[name]
        begin, end = (self.start + offset for offset in entry["data_offsets"])
        raw = self.data[begin:end].tobytes()
        if entry["dtype"] == "BF16":
            return (numpy.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").reshape(entry["shape"])
        return numpy.frombuffer(raw, DTYPES[entry["dtype"]]).reshape(entry["shape"])

    def nf4(self, name):
        """Codes, the scale of each block, the 16 levels, and the shape of a double-quantized weight."""
        state = json.loads(self.read(name + ".quant_state.bitsandbytes__nf4").tobytes())
        packed = self.read(name).reshape(-1)
        codes = numpy.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
        nested = numpy.repeat(self.read(name + ".nested_absmax"), state["nested_blocksize"])
        stored = self.read(name + ".absmax")
        scales = self.read(name + ".nested_quant_map")[stored] * nested[: len(stored)] + numpy.float32(state["nested_offset"])
        return codes, scales, self.read(name + ".quant_map"), state["shape"]

    def decode(self, name):
        codes, scales, levels, shape = self.nf4(name)
        values = levels[codes] * numpy.repeat(scales, 64)
        # The state says bfloat16: to the nearest, ties to even.
        state = json.loads(self.read(name + ".quant_state.bitsandbytes__nf4").tobytes())
        if state["dtype"] == "bfloat16":
            bits = values.astype("<f4").view("<u4")
            values = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view("<f4")
        return values.reshape(shape)


class Adapter(Checkpoint):
    def __init__(self, path):
        super().__init__(path)
        with open(os.path.join(path, "adapter_config.json"), encoding="utf-8") as file:
            config = json.load(file)
        self.scale = config["lora_alpha"] / config["r"]

    def weights(self):
        end = ".lora_A.weight"
        return [name[len("base_model.model.") : -len(end)] + ".weight" for name in self.header if name.endswith(end)]

    def delta(self, name):
        stem = "base_model.model." + name.removesuffix(".weight")
        return self.scale * (self.read(stem + ".lora_B.weight") @ self.read(stem + ".lora_A.weight"))


def half_steps(base, adapter):
    """|delta| over the distance to the boundary of the next code, for every weight's every element: shares per bin of log10."""
    edges = numpy.linspace(-5, 1, 61)
    counts, crossed, total = numpy.zeros(len(edges) - 1), 0, 0
    for name in adapter.weights():
        codes, scales, levels, _ = base.nf4(name)
        delta = adapter.delta(name).reshape(-1)
        middles = (levels[1:] + levels[:-1]) / 2
        up = numpy.append(middles, numpy.inf)[codes] - levels[codes]
        down = levels[codes] - numpy.append(-numpy.inf, middles)[codes]
        room = numpy.where(delta > 0, up, down) * numpy.repeat(scales, 64)
        ratio = numpy.abs(delta) / room
        crossed += int((ratio > 1).sum())
        total += ratio.size
        counts += numpy.histogram(numpy.log10(numpy.maximum(ratio, 1e-5)), edges)[0]
    return {"first": -5, "bin": 0.1, "shares": [round(x, 6) for x in (counts / total).tolist()], "crossed": crossed, "total": total}


def block(base, adapter, name, element):
    """One value of a weight with its neighbours on the grid."""
    codes, scales, levels, shape = base.nf4(name)
    grid = (levels * scales[element // 64]).tolist()
    delta = float(adapter.delta(name).reshape(-1)[element])
    return {"weight": name, "row": element // shape[1], "column": element % shape[1], "levels": grid, "code": int(codes[element]), "delta": delta}


# What methods add to the diagonal of H, where it is not 0.3 % of its mean.
DAMPING = {"adapter": 0.03}


def losses(base, adapter, merged, moments, damping):
    """Survival, noise and kept output of each weight, as the report defines them, from files alone."""
    known = {}
    for kept in json.loads(moments.metadata["qmerge.inputs"]):
        known.update({weight: kept["weights"][0] for weight in kept["weights"]})
    rows = []
    for name in adapter.weights():
        delta = adapter.delta(name).astype("f8")
        before = base.decode(name).astype("f8")
        change = merged.decode(name) - before
        error = change - delta
        h = moments.read(known[name]).astype("f8")
        h += damping * numpy.trace(h) / len(h) * numpy.eye(len(h))
        norm = ((delta @ h) * delta).sum()
        rows.append(
            {
                "weight": name,
                "survival": round(float((change * delta).sum() / (delta * delta).sum()), 4),
                "noise": round(float(numpy.sqrt((error * error).sum() / (delta * delta).sum())), 4),
                "kept_output": round(float(((change @ h) * delta).sum() / norm), 4),
                "noise_output": round(float(((error @ h) * error).sum() / norm), 4),
            }
        )
    return rows


def main():
    words = sys.argv[1:]
    at = words.index("--large") if "--large" in words else len(words)
    (demo, moments), merges, large = words[:2], words[2:at], words[at + 1 :]
    base, adapter = Checkpoint(os.path.join(demo, "base-nf4")), Adapter(os.path.join(demo, "adapter"))
    numbers = {
        "block": block(base, adapter, "model.layers.2.mlp.down_proj.weight", 7),
        "demo_half_steps": half_steps(base, adapter),
        "demo_losses": {
            method: losses(base, adapter, Checkpoint(path), Checkpoint(moments), DAMPING.get(method, 0.003))
            for path, method in ((path, path.rstrip("/").rsplit("-", 1)[-1]) for path in merges)
        },
    }
    if large:
        base, adapter = Checkpoint(large[0]), Adapter(large[1])
        numbers["large_half_steps"] = half_steps(base, adapter)
        with open(large[2], encoding="utf-8") as file:
            found = json.load(file)
        keep = ("loss", "kl", "top1", "gain_kept")
        numbers["large_compare"] = {
            model["name"].rsplit("-", 1)[-1]: {key: round(model[key], 5) for key in keep} for model in found["models"]
        }
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "numbers.json"), "w", encoding="utf-8") as file:
        json.dump(numbers, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
