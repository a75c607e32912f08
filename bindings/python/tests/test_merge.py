"""Merging through Python: the program's bytes, its options, its report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import numpy
import pytest
import qmerge
from conftest import weights

PROGRAM = os.environ.get("QMERGE_PROGRAM", "qmerge")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, []),
        ({"to": "bf16"}, ["--to", "bf16"]),
        ({"rounding": "nearest"}, ["--rounding", "nearest"]),
        ({"rounding": "keep", "threads": 2}, ["--rounding", "keep"]),
        ({"fast": True, "seed": 3}, ["--fast", "--seed", "3"]),
        ({"to": "fp4", "double_quant": False, "block_size": 128}, ["--to=fp4", "--double-quant=false", "--block-size=128"]),
    ],
)
def test_same_bytes_as_the_program(demo: Path, tmp_path: Path, options: dict, words: list[str]) -> None:
    report = qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "ours", **options)
    command = [PROGRAM, "merge", "--base", demo / "base-nf4", "--adapter", demo / "adapter", "-o", tmp_path / "theirs"]
    subprocess.run([*command, *words, "--quiet"], check=True)
    assert weights(tmp_path / "ours") == weights(tmp_path / "theirs")
    assert report.summary.weights_merged == 28


def test_report(demo: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.json"
    report = qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "out", rounding="nearest", report=extra)
    assert report.verdict.effect == "lost" and report.summary.kept_output is None
    assert 0.19 < report.summary.survival < 0.2
    assert report.weights[0].shape == [128, 384] and report.weights[0].from_ == "nf4"
    assert report.adapters[0].tensors == 56 and report.adapters[0].base_model == "base-nf4"
    assert report.to_dict() == json.loads(extra.read_text())
    assert qmerge.Report.load(tmp_path / "out") == report == qmerge.Report.load(extra)
    assert str(report) == report.verdict.text
    assert "weights=<28 items>" in repr(report)


def test_the_default_keeps_the_adapter(demo: Path, tmp_path: Path) -> None:
    report = qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "out", calibrate=demo / "calibration.txt")
    assert report.rounding.method == "adapter" and report.rounding.calibration.endswith("calibration.txt")
    assert report.verdict.effect == "kept" and report.summary.kept_output > 0.95
    assert all(weight.kept_output > 0.9 and weight.rounding == "adapter" for weight in report.weights)


def test_adapters_and_weights(demo: Path, tmp_path: Path) -> None:
    base, adapter = demo / "base-nf4", demo / "adapter"
    half = shutil.copytree(adapter, tmp_path / "a=b")
    forms = [
        {adapter: 0.5, half: 0.25},
        [(adapter, 0.5), (str(half), 0.25)],
    ]
    for number, form in enumerate(forms):
        report = qmerge.merge(base, form, tmp_path / str(number), to="f32")
        assert [adapter.weight for adapter in report.adapters] == [0.5, 0.25]
    assert weights(tmp_path / "0") == weights(tmp_path / "1")
    single = qmerge.merge(base, (half, 0.5), tmp_path / "single", to="f32")
    assert [adapter.weight for adapter in single.adapters] == [0.5]
    assert qmerge.plan(base, [half], tmp_path / "planned").merged == 28


def test_names_of_adapters_in_one_folder(demo: Path, tmp_path: Path) -> None:
    saved = shutil.copytree(demo / "adapter", tmp_path / "saved")
    shutil.copytree(demo / "adapter", saved / "other")
    report = qmerge.merge(demo / "base-nf4", saved, tmp_path / "out", adapter_names=["default", "other"])
    assert [Path(adapter.path).name for adapter in report.adapters] == ["saved", "other"]
    with pytest.raises(qmerge.UsageError, match="no adapter `third`"):
        qmerge.merge(demo / "base-nf4", saved, tmp_path / "more", adapter_names=["third"])


def test_checks_cannot_be_switched_off(demo: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "one", safe_merge=True)
    with pytest.warns(UserWarning, match="safe_merge=False changes nothing"):
        qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "two", safe_merge=False)


def test_plan_writes_nothing(demo: Path, tmp_path: Path) -> None:
    plan = qmerge.plan(demo / "base-nf4", demo / "adapter", tmp_path / "out", to="bf16", max_memory="300M")
    assert (plan.merged, plan.output.format) == (28, "bf16")
    assert list(tmp_path.iterdir()) == []


def test_convert_inspect_verify(demo: Path, tmp_path: Path) -> None:
    report = qmerge.convert(demo / "base-nf4", tmp_path / "base", to="bf16")
    assert report.output.format == "bf16"
    model = qmerge.inspect(tmp_path / "base")
    adapter = qmerge.inspect(demo / "adapter")
    assert isinstance(model, qmerge.ModelInspection) and model.model_type == "llama"
    assert isinstance(adapter, qmerge.AdapterInspection) and adapter.r == 8
    qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "kept", to="bf16")
    found = qmerge.verify(demo / "base-nf4", demo / "adapter", tmp_path / "kept")
    assert found.ok and found.summary.applied == 28
    found = qmerge.verify(demo / "base-nf4", demo / "adapter", tmp_path / "base")
    assert not found.ok and found.weights[0].state == "absent"


def test_compare_and_generate(demo: Path, tmp_path: Path) -> None:
    base, adapter = demo / "base-nf4", demo / "adapter"
    qmerge.merge(base, adapter, tmp_path / "out")
    found = qmerge.compare(
        base, adapter, tmp_path / "out", text=demo / "eval.txt", context=64, windows=4, continuation=0
    )
    assert [model.name for model in found.models] == ["base", "apart", str(tmp_path / "out")]
    assert found["apart"].loss < found["base"].loss and found["apart"].kl == 0
    with pytest.raises(KeyError):
        found["nothing"]
    first = qmerge.generate(base, "The king", adapter, max_tokens=8)
    assert first.tokens == 8 and str(first) == first.text
    assert qmerge.generate(base, "The king", adapter, max_tokens=8).text == first.text


def test_read(demo: Path) -> None:
    path = demo / "base-bf16/model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    names = {tensor.name: tensor for tensor in qmerge.tensors(demo / "base-bf16")}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = (8 + length + at for at in entry["data_offsets"])
        want = (numpy.frombuffer(raw[start:stop], "<u2").astype("u4") << 16).view("f4").reshape(entry["shape"])
        assert names[name] == (name, "bf16", want.shape)
        found = qmerge.read(demo / "base-bf16", name)
        assert found.dtype == numpy.float32 and found.flags.writeable
        assert found.tobytes() == want.tobytes()
        for rows in (slice(3, 9), slice(-5, None), slice(4, 2), slice(10**9)):
            assert qmerge.read(path, name, rows).tobytes() == want[rows].tobytes()


def test_read_quantized(demo: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    whole = qmerge.read(demo / "base-nf4", name)
    exact = qmerge.read(demo / "base-bf16", name)
    assert whole.shape == exact.shape == (128, 384)
    assert 0 < numpy.square(whole - exact).mean() < 0.02 * numpy.square(exact).mean()
    assert numpy.array_equal(qmerge.read(demo / "base-nf4", name, rows=slice(7, 9)), whole[7:9])
    factor = next(tensor for tensor in qmerge.tensors(demo / "adapter") if "lora_A" in tensor.name)
    assert qmerge.read(demo / "adapter", factor.name).shape == factor.shape
    with pytest.raises(qmerge.MismatchError, match="no tensor of that name") as raised:
        qmerge.read(demo / "base-nf4", "model.layers.0")
    assert raised.value.tensor == "model.layers.0"
    with pytest.raises(qmerge.UsageError, match="step of 1"):
        qmerge.read(demo / "base-nf4", name, rows=slice(0, 8, 2))


def test_calibrate_and_report(demo: Path, tmp_path: Path) -> None:
    base, adapter, out = demo / "base-nf4", demo / "adapter", tmp_path / "out"
    stored = qmerge.calibrate(base, tmp_path / "moments.safetensors", adapter, text=demo / "calibration.txt")
    assert Path(stored.output).stat().st_size == stored.bytes and "calibration.txt" in stored.taken_from
    report = qmerge.merge(base, adapter, out, calibration=stored.output)
    assert report.rounding.method == "adapter"
    found = qmerge.compare(base, adapter, out, text=demo / "eval.txt", windows=1, continuation=0)
    (tmp_path / "compare.json").write_text(json.dumps(found.to_dict()))
    qmerge.report([out, tmp_path / "compare.json"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert data == {"reports": [report.to_dict()], "comparison": found.to_dict()}
    for shown in (report, found):
        framed = shown._repr_html_()
        assert framed.startswith("<iframe") and "&lt;html" in framed and "<script" not in framed


def test_truncate(demo: Path, tmp_path: Path) -> None:
    cut = qmerge.truncate(demo / "adapter", tmp_path / "cut", rank=2, dtype="bf16")
    assert (cut.rank_before, cut.rank, len(cut.weights)) == (8, 2, 28)
    assert cut.kept is not None and 0.3 < cut.kept < 1 and "plain norm" in (cut.reason or "")
    inspected = qmerge.inspect(tmp_path / "cut")
    assert isinstance(inspected, qmerge.AdapterInspection) and inspected.r == 2
    with pytest.raises(qmerge.ExistsError):
        qmerge.truncate(demo / "adapter", tmp_path / "cut", rank=2)
    with pytest.raises(qmerge.UsageError, match="above the adapter's own"):
        qmerge.truncate(demo / "adapter", tmp_path / "more", rank=9)


def test_residual(demo: Path, tmp_path: Path) -> None:
    report = qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "out", fast=True, residual_rank=2)
    assert report.residual is not None and report.residual.weights == 28
    assert all(0 < (weight.residual_kept or 0) < 1 for weight in report.weights)
    assert isinstance(qmerge.inspect(tmp_path / "out" / report.residual.path), qmerge.AdapterInspection)
