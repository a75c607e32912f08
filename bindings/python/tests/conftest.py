"""The demo's model, and a larger one of noise."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy
import pytest

# A path that is missing is not looked for elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"

DEMO = Path(__file__).parents[3] / "crates/qmerge-cli/demo"


@pytest.fixture(scope="session")
def demo() -> Path:
    """The small trained model that is part of the repository, and its adapter."""
    return DEMO


def write_safetensors(path: Path, tensors: dict[str, tuple[str, numpy.ndarray]]) -> None:
    """Tensors as (type, values)."""
    header, at = {}, 0
    for name, (dtype, values) in tensors.items():
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, values in tensors.values():
            file.write(values.tobytes())


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` and `adapter` whose merge on one thread takes a second or more, by the adapter's rank."""
    folder = tmp_path_factory.mktemp("slow")
    rows, cols, rank, layers = 1024, 4096, 1024, 8
    random = numpy.random.default_rng(1)
    values = lambda *shape: (random.standard_normal(shape, dtype="f4") * 0.02).astype("f2")
    names = [f"model.layers.{i}.mlp.up_proj" for i in range(layers)]
    (folder / "base").mkdir()
    (folder / "base/config.json").write_text(json.dumps({"model_type": "llama"}))
    write_safetensors(
        folder / "base/model.safetensors", {f"{name}.weight": ("F16", values(rows, cols)) for name in names}
    )
    (folder / "adapter").mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["up_proj"]}
    (folder / "adapter/adapter_config.json").write_text(json.dumps(config))
    factors = {}
    a, b = values(rank, cols), values(rows, rank)
    for name in names:
        factors[f"base_model.model.{name}.lora_A.weight"] = ("F16", a)
        factors[f"base_model.model.{name}.lora_B.weight"] = ("F16", b)
    write_safetensors(folder / "adapter/adapter_model.safetensors", factors)
    return folder


def weights(folder: Path) -> dict[str, bytes]:
    """The output's files but the report, which holds times."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != "qmerge-report.json"}
