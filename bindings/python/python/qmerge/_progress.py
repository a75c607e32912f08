"""Telling of progress: a function of the caller's, or a bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional, Union



class Progress(NamedTuple):
    """How far a piece of work is."""

    done: int
    """Work done, in nanoseconds of a thread as predicted: `done / total` is about the share of the time."""
    total: int
    """Work in all."""
    phase: str
    """What is being done: "rounding"."""
    unit: str
    """What is counted of it: "layers"."""
    part: int
    """How many of them are done."""
    parts: int
    """How many there are; 0 if that is not known."""

    def __str__(self) -> str:
        count = f": {self.part} of {self.parts} {self.unit}" if self.parts else ""
        return f"{self.phase}{count}"


Watcher = Union[Callable[[Progress], object], bool, None]
"""A function that is told how far the work is; True for a bar. What it raises stops the work."""

Raw = Callable[[int, int, str, str, int, int], object]


@contextmanager
def callback(progress: Watcher, title: str) -> Iterator[Optional[Raw]]:
    """What the compiled half calls, on the calling thread."""
    if not progress:
        yield None
    elif callable(progress):
        tell = progress
        yield lambda *state: tell(Progress(*state))
    else:
        bar = _tqdm(title) or _Line(title)
        try:
            yield lambda *state: bar(Progress(*state))
        finally:
            bar.close()


class _Line:
    """A percentage on standard error, if that is a terminal."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.width = 0

    def __call__(self, state: Progress) -> None:
        if sys.stderr.isatty():
            text = f"{self.title}: {100 * state.done // state.total:3} %  {state}"
            print(f"\r{text:{self.width}}", end="", file=sys.stderr, flush=True)
            self.width = len(text)

    def close(self) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)


class _Tqdm:
    """tqdm's bar, which notebooks show as a widget."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def __call__(self, state: Progress) -> None:
        self.bar.total = state.total
        self.bar.set_postfix_str(str(state), refresh=False)
        self.bar.update(state.done - self.bar.n)

    def close(self) -> None:
        self.bar.close()


def _tqdm(title: str) -> Optional[_Tqdm]:
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        return None
    # Work is counted in predicted nanoseconds, which mean nothing to a reader.
    return _Tqdm(tqdm(desc=title, bar_format="{desc}: {percentage:3.0f}%|{bar}| {postfix} [{elapsed}<{remaining}]"))
