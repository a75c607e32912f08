"""Long work: progress, other threads, and Ctrl-C."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import qmerge
from conftest import weights


def test_progress(demo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[qmerge.Progress] = []
    caller: list[int] = []

    def progress(state: qmerge.Progress) -> None:
        seen.append(state)
        caller.append(threading.get_ident())

    qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "out", progress=progress)
    done = [state.done for state in seen]
    assert done == sorted(done) and done[-1] == seen[-1].total > 0
    assert all(state.part <= state.parts for state in seen)
    phases = list(dict.fromkeys(state.phase for state in seen))
    assert "rounding" in phases and phases[-1] == "measuring the merge", phases
    assert any(str(state).endswith(" of 4 layers") and state.unit == "layers" for state in seen), seen
    assert set(caller) == {threading.get_ident()}
    assert qmerge.verify(demo / "base-nf4", demo / "adapter", tmp_path / "out", progress=progress)
    qmerge.merge(demo / "base-nf4", demo / "adapter", tmp_path / "bar", progressbar=True)
    assert capfd.readouterr().out == ""


def test_a_progress_that_raises_stops_the_work(slow: Path, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def progress(state: qmerge.Progress) -> None:
        raise Enough

    with pytest.raises(Enough):
        qmerge.merge(slow / "base", slow / "adapter", tmp_path / "out", threads=1, progress=progress)
    assert not (tmp_path / "out").exists()


def test_other_threads_go_on(slow: Path, tmp_path: Path) -> None:
    ticks, stop = [], threading.Event()

    def tick() -> None:
        while not stop.wait(0.005):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    before = time.monotonic()
    qmerge.merge(slow / "base", slow / "adapter", tmp_path / "out", threads=1)
    seconds = time.monotonic() - before
    stop.set()
    thread.join()
    assert len(ticks) > 0.2 * seconds / 0.005


INTERRUPTED = """
import os, signal, sys, threading, time
import qmerge

base, adapter, out = sys.argv[1:]

def interrupt(state):
    global timer
    if timer is None:
        timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()

timer = None
# A shell that starts a job in the background has it ignore the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    qmerge.merge(base, adapter, out, to="nf4", threads=1, progress=interrupt)
except KeyboardInterrupt:
    sys.exit(77)
"""


def test_ctrl_c(slow: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-c", INTERRUPTED, slow / "base", slow / "adapter", out]
    # On a busy machine the signal may come when the merge is done: then the program ends with 0, and another try is due.
    for _ in range(4):
        code = subprocess.run(words, timeout=60).returncode
        if code != 0:
            break
        shutil.rmtree(out)
    assert code == 77
    assert not out.exists()
    qmerge.merge(slow / "base", slow / "adapter", out, to="nf4", resume=True)
    assert not out.with_name("out.partial").exists()
    qmerge.merge(slow / "base", slow / "adapter", tmp_path / "whole", to="nf4")
    assert weights(out) == weights(tmp_path / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are Unix's")
def test_ctrl_c_ends_the_command(slow: Path, tmp_path: Path) -> None:
    words = ["qmerge", "merge", "--base", slow / "base", "--adapter", slow / "adapter", "--to", "nf4", "--threads", "1"]
    command = subprocess.Popen([*words, "-o", tmp_path / "out"])
    while not (tmp_path / "out.partial").exists() and command.poll() is None:
        time.sleep(0.005)
    command.send_signal(signal.SIGINT)
    assert command.wait(timeout=20) == 130
    assert not (tmp_path / "out").exists()
