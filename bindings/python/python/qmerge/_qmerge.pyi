"""The compiled half of qmerge."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Final

__all__ = ["__version__", "call", "program", "read", "resolve", "tensors"]

__version__: Final[str]

def call(args: Sequence[str], progress: Callable[[int, int], object] | None = None) -> tuple[int, str]: ...
def program(args: Sequence[str]) -> int: ...
def read(
    path: str | os.PathLike[str], name: str, rows: slice[Any, Any, Any] | None = None
) -> tuple[bytearray, list[int]]: ...
def resolve(location: str | os.PathLike[str]) -> pathlib.Path: ...
def tensors(path: str | os.PathLike[str]) -> list[tuple[str, str, list[int]]]: ...
