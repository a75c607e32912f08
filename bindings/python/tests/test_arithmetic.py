"""Adapters made of others, and of models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qmerge


def test_combine(demo: Path, tmp_path: Path) -> None:
    adapter = demo / "adapter"
    both = qmerge.combine([(adapter, 0.5), (adapter, 0.25)], tmp_path / "both")
    assert (both.output, both.kept) == (str(tmp_path / "both"), None)
    assert json.loads((tmp_path / "both/adapter_config.json").read_text())["peft_type"] == "LORA"
    # What it adds is three quarters of what the adapter does.
    merge = {"base": demo / "base-nf4", "to": "f32", "rounding": "nearest"}
    qmerge.merge(adapter=tmp_path / "both", output=tmp_path / "one", **merge)
    qmerge.merge(adapter={adapter: 0.75}, output=tmp_path / "other", **merge)
    name = "model.layers.0.mlp.down_proj.weight"
    one, other = (qmerge.read(tmp_path / folder, name) for folder in ("one", "other"))
    assert abs(one - other).max() < 1e-6
    cut = qmerge.combine(adapter, tmp_path / "cut", rank=2, lora_scale={"mlp": 0.0}, dtype="bf16")
    assert cut.rank == 2 and 0 < cut.kept < 1
    with pytest.raises(qmerge.UsageError, match="method"):
        qmerge.combine(adapter, tmp_path / "no", method="average")


def test_task_vectors(demo: Path, tmp_path: Path) -> None:
    base, name = demo / "base-nf4", "model.layers.0.mlp.down_proj.weight"
    tuned = qmerge.merge(base, demo / "adapter", tmp_path / "tuned", to="f32", rounding="nearest").output
    merge = {"to": "f32", "rounding": "nearest"}
    found = qmerge.merge(base, None, tmp_path / "again", tuned=[(tuned.path, 0.5), (tuned.path, 0.5)], **merge)
    assert found.task_vectors.method == "linear" and [one.weight for one in found.adapters] == [0.5, 0.5]
    assert abs(qmerge.read(found.output.path, name) - qmerge.read(tuned.path, name)).max() < 1e-6
    halved = qmerge.merge(base, None, tmp_path / "half", tuned=tuned.path, lora_scale={"mlp": 0.0}, **merge)
    assert halved.lora_scale == ["mlp=0.0"]
    assert (qmerge.read(halved.output.path, name) == qmerge.read(base, name)).all()
    joined = {"tuned": tuned.path, "tuned_method": "dare_ties", "density": 0.5, "tuned_seed": 3}
    pruned = qmerge.merge(base, None, tmp_path / "dare", **joined, **merge)
    assert qmerge.verify(base, None, pruned.output.path, **joined).ok
    with pytest.raises(qmerge.UsageError, match="which share"):
        qmerge.merge(base, None, tmp_path / "no", tuned=tuned.path, tuned_method="ties")


def test_as_peft_calls_it(demo: Path, tmp_path: Path) -> None:
    adapter = demo / "adapter"
    made = qmerge.peft.add_weighted_adapter([adapter, adapter], [0.7, 0.3], tmp_path / "ties", "ties", density=0.5)
    assert made.method == "ties" and len(made.weights) == 28
    made = qmerge.peft.add_weighted_adapter([adapter, adapter], [1, -0.5], tmp_path / "svd", svd_rank=3)
    assert (made.method, made.rank) == ("svd", 3)
    with pytest.raises(qmerge.UsageError, match="1 adapters, and 2 weights"):
        qmerge.peft.add_weighted_adapter([adapter], [1, 2], tmp_path / "no")


def test_extract_and_unmerge(demo: Path, tmp_path: Path) -> None:
    base, adapter = demo / "base-nf4", demo / "adapter"
    qmerge.merge(base, adapter, tmp_path / "tuned", to="f32", rounding="nearest")
    found = qmerge.extract(base, tmp_path / "tuned", tmp_path / "found", rank=8)
    # The adapter has rank 8, so nothing is left out but rounding.
    assert found.kept > 0.999 and found.left_out == 0 and str(found.left_out) == "0.0"
    energy = qmerge.extract(base, tmp_path / "tuned", tmp_path / "energy", energy=0.9, full=False)
    assert 1 <= energy.rank <= 8
    report = qmerge.unmerge(tmp_path / "tuned", adapter, tmp_path / "base")
    assert any("what merging rounded off is gone" in text for text in report.warnings)
    name = "model.layers.0.mlp.down_proj.weight"
    assert abs(qmerge.read(tmp_path / "base", name) - qmerge.read(base, name)).max() < 1e-6
    made = qmerge.convert_adapter(base, adapter, tmp_path / "lora", rank=4)
    assert made.rank == 4 and 0.5 < made.kept < 1
