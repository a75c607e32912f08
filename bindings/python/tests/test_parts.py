"""A merge in parts, by processes and by the tasks of a Ray cluster."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qmerge


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_parts_are_put_together(demo: Path, tmp_path: Path) -> None:
    merge = {"base": demo / "base-nf4", "adapter": demo / "adapter", "fast": True}
    whole = qmerge.merge(output=tmp_path / "whole", **merge)
    planned = qmerge.plan(output=tmp_path / "out", parts=2, **merge)
    assert [part["part"] for part in planned.parts] == [1, 2]
    assert sum(part["steps"] for part in planned.parts) == planned.merged + planned.copied
    for part in ("1/2", "2/2"):
        done = qmerge.merge_part(output=tmp_path / "out", part=part, **merge)
        assert (done.part, done.of) == (int(part[0]), 2) and Path(done.folder).is_dir()
    report = qmerge.finish(output=tmp_path / "out", **merge)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert report.weights == whole.weights
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "whole"]
    lost = {"base": demo / "base-nf4", "adapter": demo / "adapter", "rounding": "nearest"}
    qmerge.merge_part(output=tmp_path / "low", part="1/1", **lost)
    with pytest.raises(qmerge.SurvivalError):
        qmerge.finish(output=tmp_path / "low", min_survival=0.9, **lost)


def test_wrong_use(demo: Path, tmp_path: Path) -> None:
    base, adapter = demo / "base-nf4", demo / "adapter"
    with pytest.raises(qmerge.UsageError, match="1/4 to 4/4"):
        qmerge.merge_part(base, adapter, tmp_path / "out", "5/4")
    with pytest.raises(qmerge.UsageError, match="no_such_option"):
        qmerge.merge_part(base, adapter, tmp_path / "out", "1/4", no_such_option=True)
    with pytest.raises(qmerge.UsageError, match="there are no parts"):
        qmerge.finish(base, adapter, tmp_path / "out", fast=True)


def test_without_ray(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(qmerge.UsageError, match="pip install"):
        qmerge.ray.merge(demo / "base-nf4", demo / "adapter", tmp_path / "out")


def test_wrong_use_of_a_cluster(demo: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    for wrong in (
        {"parts": 0}, {"parts": -1}, {"parts": 2.5}, {"parts": "2"}, {"parts": True}, {"cpus": 0}, {"retries": -1},
        {"moments": tmp_path / "m"}, {"part": "1/2"}, {"residual_rank": 2}, {"push": "me/x"},
    ):
        with pytest.raises(qmerge.UsageError, match=next(iter(wrong))):
            qmerge.ray.merge(demo / "base-nf4", demo / "adapter", tmp_path / "out", fast=True, **wrong)
    assert not (tmp_path / "out").exists()


def test_paths_are_of_the_folder_that_they_are_given_in(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    shutil.copytree(demo / "base-nf4", tmp_path / "base")
    shutil.copytree(demo / "adapter", tmp_path / "adapter")
    (tmp_path / "scratch").mkdir()
    # Workers have another folder of their own.
    try:
        ray.init(num_cpus=2, log_to_driver=False)
        monkeypatch.chdir(tmp_path)
        qmerge.merge("base", "adapter", "tuned", to="f32", rounding="nearest", measure="never")
        merge: dict[str, object] = {"tuned": {"tuned": 0.5}, "fast": True, "no_run": True}
        whole = qmerge.merge("base", None, "whole", **merge)
        report = qmerge.ray.merge(
            "base", None, "out", parts=2, cpus=1, scratch="scratch=1G", report="report.json", **merge
        )
        assert weights(tmp_path / "out") == weights(tmp_path / "whole")
        assert report.weights == whole.weights
        assert (tmp_path / "report.json").is_file() and not list((tmp_path / "scratch").iterdir())
    finally:
        ray.shutdown()


def test_the_command_line_s_cluster_says_nothing_of_python(demo: Path, tmp_path: Path) -> None:
    """What the program starts, which Python warned of where a module of it was imported before."""
    words = ["--on", "ray", "--version", "0", "--", "base", "adapter", "-o", "out"]
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "qmerge._on", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "Warning" not in done.stderr, done.stderr
    assert done.returncode == 9 or "the program is qmerge 0, and the Python package" in done.stderr


def test_a_cluster_that_loses_a_node(slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # Nodes of one machine count its processors once.
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    base, adapter = slow / "base", slow / "adapter"
    qmerge.merge(base, adapter, tmp_path / "whole", to="nf4", fast=True, threads=1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        lost = []

        def told(progress: qmerge.Progress) -> None:
            # Once a part is done, others are under work.
            if not lost:
                lost.append(nodes.pop())
                cluster.remove_node(lost[0], allow_graceful=False)

        report = qmerge.ray.merge(
            base, adapter, tmp_path / "out", parts=6, cpus=1, to="nf4", fast=True, progress=told
        )
        assert lost
        assert report.summary.weights_merged == 8
        assert weights(tmp_path / "out") == weights(tmp_path / "whole")
        deadline = time.monotonic() + 30
        while sorted(item.name for item in tmp_path.iterdir()) != ["out", "whole"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.raises(qmerge.ExistsError):
            qmerge.ray.merge(base, adapter, tmp_path / "out", to="nf4", fast=True)
        with pytest.raises(qmerge.UsageError, match="cpus"):
            qmerge.ray.merge(base, adapter, tmp_path / "more", threads=2)
        with pytest.raises(qmerge.NotFoundError):
            qmerge.ray.merge(base, slow / "no-such-adapter", tmp_path / "more")
    finally:
        ray.shutdown()
        cluster.shutdown()
