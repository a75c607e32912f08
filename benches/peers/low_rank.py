"""Is a cut adapter the best of its rank? numpy's SVD of the dense D times a root of H says.

    low_rank.py MOMENTS ADAPTER CUT      MOMENTS: what `qmerge calibrate` wrote; CUT: what `qmerge truncate --calibration MOMENTS` made of ADAPTER
"""

import json
import pathlib
import sys

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file


def metrics(path):
    """H of each weight, damped by 0.003 of its mean diagonal."""
    found = {}
    with safe_open(path, "np") as file:
        for kept in json.loads(file.metadata()["qmerge.inputs"]):
            moments = file.get_tensor(kept["weights"][0]).astype(float)
            diagonal = np.diag(moments).copy()
            moments += np.diag(np.where(diagonal == 0, 1.0, 0.003 * diagonal.mean()))
            found |= dict.fromkeys(kept["weights"], moments)
    return found


def products(folder):
    """scaling · B·A by weight, for an adapter without patterns; and its rank."""
    config = json.loads((pathlib.Path(folder) / "adapter_config.json").read_text())
    stored = load_file(pathlib.Path(folder) / "adapter_model.safetensors")
    scale, found = config["lora_alpha"] / config["r"], {}
    for name in (name for name in stored if name.endswith(".lora_A.weight")):
        b = stored[name.replace("lora_A", "lora_B")].astype(float)
        weight = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        found[weight] = scale * b @ stored[name].astype(float)
    return found, config["r"]


(before, _), (after, rank), kept, worst = products(sys.argv[2]), products(sys.argv[3]), [0, 0], 0
for weight, moments in metrics(sys.argv[1]).items():
    root = np.linalg.cholesky(moments)
    energies = np.linalg.svd(before[weight] @ root, compute_uv=False) ** 2
    left = (((before[weight] - after[weight]) @ root) ** 2).sum()
    worst = max(worst, (left - energies[rank:].sum()) / energies.sum())
    kept = [kept[0] + energies.sum() - left, kept[1] + energies.sum()]
print(f"kept {kept[0] / kept[1]:.6f}; above the least error by at most {worst:.1e} of a module's energy")
