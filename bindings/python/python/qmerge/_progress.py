"""Telling of progress: a function of the caller's, or a bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional, Union

Progress = Union[Callable[[int, int], object], bool, None]
"""A function that is told the work done and the whole of it; True for a bar. What it raises stops the work."""


@contextmanager
def callback(progress: Progress, title: str) -> Iterator[Optional[Callable[[int, int], object]]]:
    """What the compiled half calls, on the calling thread."""
    if not progress:
        yield None
    elif callable(progress):
        yield progress
    else:
        bar = _tqdm(title) or _Line(title)
        try:
            yield bar
        finally:
            bar.close()


class _Line:
    """A percentage on standard error, if that is a terminal."""

    def __init__(self, title: str) -> None:
        self.title = title

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{self.title}: {100 * done // total:3} %", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)


class _Tqdm:
    """tqdm's bar, which notebooks show as a widget."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar

    def __call__(self, done: int, total: int) -> None:
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        self.bar.close()


def _tqdm(title: str) -> Optional[_Tqdm]:
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        return None
    return _Tqdm(tqdm(desc=title, unit_scale=True))
