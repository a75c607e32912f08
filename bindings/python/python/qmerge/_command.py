"""From keyword arguments to a command of the program and back, so that both mean the same and have the same defaults."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional, Union

from . import _qmerge
from ._errors import UsageError
from ._progress import Watcher, callback

Path = Union[str, "os.PathLike[str]"]
"""A folder, a file, a hub id, or an address."""

Adapters = Union[Path, tuple[Path, float], Mapping[Path, float], Sequence[Union[Path, tuple[Path, float]]]]
"""One adapter or several, each with or without a factor on its effect."""


def run(command: str, options: Iterable[str], progress: Watcher) -> tuple[int, dict[str, Any]]:
    """Exit status and answer of a command."""
    with callback(progress, command) as tell:
        status, answer = _qmerge.call([command, *options], tell)
    return status, json.loads(answer)


def flags(**options: object) -> list[str]:
    """`max_memory="2G"` as `--max-memory=2G`: None and False are left out, a list is repeated."""
    words: list[str] = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        values = value if isinstance(value, (list, tuple)) else [value]
        for item in values:
            if item is True:
                words.append(option)
            elif item is not None and item is not False:
                text = os.fspath(item) if isinstance(item, os.PathLike) else str(item)
                words.append(f"{option}={text}")
    return words


def yes_or_no(value: Optional[bool]) -> Optional[str]:
    """An option that takes a word, because its default is yes."""
    return None if value is None else str(bool(value)).lower()


def maps(value: Union[Mapping[str, str], Sequence[str], None]) -> list[str]:
    """Translations of names as the program takes them."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [f"{pattern}=>{name}" for pattern, name in value.items()]
    return list(value)


def scales(value: Optional[Mapping[str, float]]) -> list[str]:
    """Factors by regular expressions as the program takes them."""
    return [f"{pattern}={factor!r}" for pattern, factor in (value or {}).items()]


def adapters(value: Adapters, names: Optional[Sequence[str]] = None) -> list[str]:
    """Adapters as the program takes them: PATH or PATH=WEIGHT."""
    pairs = _pairs(value)
    if names is not None:
        if len(pairs) != 1:
            raise UsageError("adapter_names selects among the adapters of one folder, and several are given")
        folder, weight = pairs[0]
        pairs = [(_named(folder, name), weight) for name in ([names] if isinstance(names, str) else names)]
    return [_with_weight(path, weight) for path, weight in pairs]


def _pairs(value: Adapters) -> list[tuple[str, float]]:
    if isinstance(value, (str, os.PathLike)):
        return [(os.fspath(value), 1.0)]
    if isinstance(value, Mapping):
        return [(os.fspath(path), float(weight)) for path, weight in value.items()]
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], (int, float)):
        return [(os.fspath(value[0]), float(value[1]))]
    return [pair for item in value for pair in _pairs(item)]


def _named(folder: str, name: str) -> str:
    """PEFT saves the adapter `default` into the folder itself and others into folders of their names."""
    place = os.fspath(_qmerge.resolve(folder))
    nested = os.path.join(place, name)
    if os.path.isfile(os.path.join(nested, "adapter_config.json")):
        return nested
    if name == "default":
        return place
    raise UsageError(f"{folder}: there is no adapter `{name}` in this folder")


def _with_weight(path: str, weight: float) -> str:
    if "://" in path and "?" in path:
        # What follows a question mark in an address is its own.
        if weight == 1.0:
            return path
        raise UsageError("an address that ends in a signature takes no weight")
    # A path that holds a `=` needs its weight said, or its end would be taken for one.
    return path if weight == 1.0 and "=" not in path else f"{path}={weight!r}"
