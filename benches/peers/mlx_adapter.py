"""A PEFT LoRA as mlx-lm stores one: transposed, with its scale in the configuration.

    mlx_adapter.py ADAPTER OUT
"""

import json
import pathlib
import sys

from safetensors.torch import save_file

import models

adapter, out = map(pathlib.Path, sys.argv[1:])
config = json.loads((adapter / "adapter_config.json").read_text())
lora = {}
for name, value in models.tensors(adapter).items():
    name = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".lora_a").replace(".lora_B.weight", ".lora_b")
    lora[name] = value.t().contiguous()
keys = sorted({name.split(".", 3)[3].rsplit(".", 1)[0] for name in lora})
layers = 1 + max(int(name.split(".")[2]) for name in lora)
out.mkdir(parents=True)
save_file(lora, out / "adapters.safetensors")
parameters = {"rank": config["r"], "scale": config["lora_alpha"] / config["r"], "dropout": 0.0, "keys": keys}
(out / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora", "num_layers": layers, "lora_parameters": parameters}))
