"""`merge_and_save`, with a stand-in for a live model, and with PEFT itself where it is installed."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import qmerge
from conftest import weights
from qmerge.peft import merge_and_save


class Live:
    """What is used of a `PeftModel`."""

    def __init__(self, demo: Path, quantized: bool = False) -> None:
        self.demo = demo
        self.active_adapters = ["default"]
        config = SimpleNamespace(base_model_name_or_path=str(demo / "base-nf4"))
        self.peft_config = {"default": config, "other": config}
        quantization = {"quant_method": "bitsandbytes"} if quantized else None
        self.base = SimpleNamespace(name_or_path="", config=SimpleNamespace(quantization_config=quantization))

    def get_base_model(self) -> SimpleNamespace:
        return self.base

    def save_pretrained(self, folder: str, selected_adapters: list[str]) -> None:
        for name in selected_adapters:
            place = Path(folder) if name == "default" else Path(folder) / name
            shutil.copytree(self.demo / "adapter", place, dirs_exist_ok=True)


def test_live_model(demo: Path, tmp_path: Path) -> None:
    report = merge_and_save(Live(demo), tmp_path / "live", to="bf16")
    assert report.summary.weights_merged == 28
    merge_and_save((demo / "base-nf4", demo / "adapter"), tmp_path / "paths", to="bf16")
    qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "plain", to="bf16")
    assert weights(tmp_path / "live") == weights(tmp_path / "paths") == weights(tmp_path / "plain")
    report = merge_and_save(Live(demo), tmp_path / "two", adapter_names=["default", "other"])
    assert len(report.adapters) == 2


def test_another_base_than_the_live_one(demo: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="quantized as it was loaded"):
        merge_and_save(Live(demo, quantized=True), tmp_path / "out", base=demo / "base-bf16")


def test_wrong_use(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(qmerge.UsageError, match="no PeftModel"):
        merge_and_save(object(), tmp_path / "out")
    with pytest.raises(qmerge.UsageError, match="no adapter `third`"):
        merge_and_save(Live(demo), tmp_path / "out", adapter_names=["third"])
    nowhere = Live(demo)
    nowhere.peft_config["default"].base_model_name_or_path = None
    with pytest.raises(qmerge.UsageError, match="pass base="):
        merge_and_save(nowhere, tmp_path / "out")


def test_with_peft(demo: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(demo / "base-nf4")
    model = peft.PeftModel.from_pretrained(base, demo / "adapter")
    merge_and_save(model, tmp_path / "live")
    qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "plain")
    assert weights(tmp_path / "live") == weights(tmp_path / "plain")
    model.load_adapter(demo / "adapter", adapter_name="other")
    report = merge_and_save(model, tmp_path / "other", adapter_names=["other"])
    assert report.summary.weights_merged == 28
