"""Text that a live model writes itself, with a LoRA that hardly shows made stronger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import qmerge

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


@pytest.fixture
def live(demo: Path) -> Any:
    base = transformers.AutoModelForCausalLM.from_pretrained(demo / "base-bf16", dtype=torch.float32)
    return peft.PeftModel.from_pretrained(base, demo / "adapter")


def layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def test_one_that_shows_is_left_alone(live: Any, tmp_path: Path) -> None:
    for layer in layers(live):
        layer.scale_layer(2)
    found = qmerge.torch.calibrate(live, None, tmp_path / "shown.safetensors")
    assert found.taken_from == "3072 tokens that the model wrote (seed 0), run in torch"


def test_one_that_hardly_shows_is_stronger_while_the_model_writes(live: Any, tmp_path: Path) -> None:
    for layer in layers(live):
        layer.scale_layer(0.25)
    frozen = [parameter.requires_grad for parameter in live.parameters()]
    before = [dict(layer.scaling) for layer in layers(live)]
    found = qmerge.torch.calibrate(live, None, tmp_path / "weak.safetensors")
    assert "3072 tokens" in found.taken_from and "with the adapter up to" in found.taken_from
    # Moments are taken with the adapter as it is, and the model is left as it was.
    assert [dict(layer.scaling) for layer in layers(live)] == before
    assert [parameter.requires_grad for parameter in live.parameters()] == frozen


def test_what_overflows_where_it_is_stronger_is_written_as_it_is(live: Any, tmp_path: Path) -> None:
    for layer in layers(live):
        layer.scale_layer(0.1)
    forward = live.get_base_model().lm_head.forward
    scale = layers(live)[0].scaling["default"]

    def overflowing(x: Any) -> Any:
        y = forward(x)
        return y * float("inf") if layers(live)[0].scaling["default"] > 1.5 * scale else y

    live.get_base_model().lm_head.forward = overflowing
    found = qmerge.torch.calibrate(live, None, tmp_path / "weak.safetensors")
    assert found.taken_from == "3072 tokens that the model wrote (seed 0), run in torch"


def test_a_model_without_an_adapter_writes_once(demo: Path, tmp_path: Path) -> None:
    base = transformers.AutoModelForCausalLM.from_pretrained(demo / "base-bf16", dtype=torch.float32)
    found = qmerge.torch.calibrate(base, None, tmp_path / "base.safetensors", seed=2**62)
    assert found.taken_from == f"3072 tokens that the model wrote (seed {2**62}), run in torch"
