"""Exceptions: one class for each kind of error, with file, tensor and remedy."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy
import pytest
import qmerge
from conftest import write_safetensors


def test_low_survival(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(qmerge.SurvivalError, match="below min_survival 0.9") as raised:
        qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "out", rounding="nearest", min_survival=0.9)
    error = raised.value
    assert error.report.verdict.effect == "lost" and error.file == str(tmp_path / "out")
    assert error.hint is not None and 'rounding="auto"' in error.hint
    assert (tmp_path / "out/config.json").exists()
    qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "kept", min_survival=0.9)


def test_output_exists(demo: Path, tmp_path: Path) -> None:
    qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "out")
    with pytest.raises(FileExistsError) as raised:
        qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "out")
    error = raised.value
    assert isinstance(error, qmerge.ExistsError) and error.file == str(tmp_path / "out")
    assert error.hint == "choose another name, or replace it with force=True"
    qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "out", force=True)


def test_wrong_use(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="invalid value 'nf5' for 'to'") as raised:
        qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "out", to="nf5")
    assert isinstance(raised.value, qmerge.UsageError)
    assert "possible values: same, nf4" in str(raised.value) and "--" not in str(raised.value)
    for missing in (
        lambda: qmerge.inspect(tmp_path / "missing"),
        lambda: qmerge.merge(tmp_path / "missing", demo / "adapter", tmp_path / "out"),
        lambda: qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "out", calibrate=tmp_path / "missing.txt"),
        lambda: qmerge.report(tmp_path / "missing", tmp_path / "page.html"),
    ):
        with pytest.raises(FileNotFoundError, match="no such") as absent:
            missing()
        assert isinstance(absent.value, qmerge.NotFoundError)
    with pytest.raises(qmerge.UsageError):
        qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "out", threads="many")  # type: ignore[arg-type]
    with pytest.raises(qmerge.UsageError):
        qmerge.merge(demo / "base-nf4", (demo / "adapter", float("nan")), tmp_path / "out")
    with pytest.raises(qmerge.UsageError):
        qmerge.merge(demo / "base-nf4", [], tmp_path / "out")


def test_unfit_input(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(qmerge.UnsupportedError, match="holds an adapter"):
        qmerge.merge(demo / "adapter", demo / "adapter", tmp_path / "out")
    broken = shutil.copytree(demo / "adapter", tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(qmerge.MalformedError) as raised:
        qmerge.merge(demo / "base-nf4", broken, tmp_path / "out")
    assert raised.value.file == str(broken / "adapter_model.safetensors")
    strange = shutil.copytree(demo / "adapter", tmp_path / "strange")
    name = "base_model.model.model.layers.0.mlp.other_proj.lora_{}.weight"
    factors = {name.format("A"): ("F32", numpy.zeros((8, 4), "f4")), name.format("B"): ("F32", numpy.zeros((4, 8), "f4"))}
    # Beside one that the base has: what is left may be merged.
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors |= {name.format("A"): ("F32", numpy.ones((8, 128), "f4")), name.format("B"): ("F32", numpy.ones((128, 8), "f4"))}
    write_safetensors(strange / "adapter_model.safetensors", factors)
    with pytest.raises(qmerge.MismatchError) as mismatch:
        qmerge.merge(demo / "base-nf4", strange, tmp_path / "out")
    assert "allow_unused=True" in str(mismatch.value)


def test_not_finite(demo: Path, tmp_path: Path) -> None:
    names = {tensor.name: qmerge.read(demo / "adapter", tensor.name) for tensor in qmerge.tensors(demo / "adapter")}
    first = next(iter(names))
    names[first][0, 0] = numpy.nan
    broken = shutil.copytree(demo / "adapter", tmp_path / "broken")
    tensors = {name: ("F32", values) for name, values in names.items()}
    write_safetensors(broken / "adapter_model.safetensors", tensors)
    with pytest.raises(qmerge.NotFiniteError) as raised:
        qmerge.merge(demo / "base-nf4", broken, tmp_path / "out")
    assert raised.value.tensor is not None and isinstance(raised.value, ValueError)
    assert not (tmp_path / "out").exists()


def test_writing_fails(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError) as raised:
        qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "file/out")
    error = raised.value
    assert isinstance(error, qmerge.IoError) and error.errno is not None
    assert str(error).startswith(error.file or "?")


def test_every_class_is_an_error() -> None:
    classes = [value for value in vars(qmerge).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) == 11 and all(issubclass(cls, qmerge.Error) for cls in classes)
    assert isinstance(pickle.loads(pickle.dumps(qmerge.UsageError("text"))), qmerge.UsageError)
