"""What is installed: the command, the types, the README's example."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import get_args

import pytest
import qmerge
from qmerge import _api as api

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("command", [["qmerge"], [sys.executable, "-m", "qmerge"]])
def test_command(command: list[str], demo: Path) -> None:
    run = lambda *words: subprocess.run([*command, *words], capture_output=True, text=True)
    assert run("--version").stdout == f"qmerge {qmerge.__version__}\n"
    assert run("inspect", demo / "adapter").stdout.startswith(f"{demo / 'adapter'}: LORA, rank 8")
    failed = run("inspect", demo / "nothing")
    assert failed.returncode == 2 and "no such file or folder" in failed.stderr
    assert run("merge").returncode == 2


def test_version() -> None:
    assert metadata.version("qmerge") == qmerge.__version__
    assert f'version = "{qmerge.__version__}"' in (ROOT / "Cargo.toml").read_text()


def test_every_option_of_the_program_is_there() -> None:
    """The ones that mean nothing in a function are named here."""
    other = {"help", "version", "json", "quiet", "dry-run", "push", "color", "verbose", "part", "on", "no-full"}
    names = ("merge", "convert", "verify", "compare", "generate", "truncate", "calibrate")
    for name in (*names, "combine", "extract", "convert-adapter"):
        text = subprocess.run(["qmerge", name, "--help"], capture_output=True, text=True).stdout
        options = set(re.findall(r"^ {2,6}(?:-\w, )?--([a-z][a-z-]+)", text, re.MULTILINE)) - other
        known = set(getattr(qmerge, name.replace("-", "_")).__annotations__)
        assert {option.replace("-", "_") for option in options} <= known


def test_every_value_of_an_option_is_a_type() -> None:
    """A word that the program takes is known to type checkers, and no other."""
    text = subprocess.run(["qmerge", "merge", "--help"], capture_output=True, text=True).stdout

    def words(option: str) -> set[str]:
        part = re.split(rf"^ +(?:-\w, )?--{option} ", text, flags=re.MULTILINE)[1]
        part = re.split(r"^ +(?:-\w, )?--\w", part, flags=re.MULTILINE)[0]
        return set(re.findall(r"^ +- ([\w-]+):", part, re.MULTILINE))

    def flat(kind: object) -> set[str]:
        return {word for item in get_args(kind) for word in (flat(item) if get_args(item) else {item})}

    for option, kind in (("to", api.Target), ("rounding", api.Rounding), ("tokenizer", api.Tokenizer)):
        assert words(option) == flat(kind), option


def test_types() -> None:
    pytest.importorskip("mypy")
    config = ["--config-file", str(ROOT / "bindings/python/pyproject.toml")]
    for words in (["mypy", *config], ["mypy.stubtest", "qmerge._qmerge"]):
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", ["README.md", "docs/src/reference/python.md"])
def test_examples(text: str, tmp_path: Path) -> None:
    """The examples of README and book run as they stand, behind `qmerge demo`."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / text).read_text(), re.DOTALL)
    assert examples
    subprocess.run(["qmerge", "demo"], check=True, cwd=tmp_path, capture_output=True)
    subprocess.run([sys.executable, "-c", "\n".join(examples)], check=True, cwd=tmp_path)
