"""Exceptions: one class for each kind of error, all of them `Error`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from ._results import Report


class Error(Exception):
    """What can go wrong. Says which file and which tensor, what happened, and, where there is one, a remedy."""

    file: Optional[str] = None
    """The file it is about."""
    tensor: Optional[str] = None
    """The tensor it is about."""
    hint: Optional[str] = None
    """What to do, one sentence."""


class IoError(Error, OSError):
    """Reading or writing failed; trying again may help."""


class MalformedError(Error, ValueError):
    """A file is not what it says it is: broken header, offsets out of range, truncated data."""


class UnsupportedError(Error, NotImplementedError):
    """The input is well formed, but this version cannot do what it asks for."""


class MismatchError(Error, ValueError):
    """Inputs do not fit each other: shapes, names, ranks."""


class NotFiniteError(Error, ValueError):
    """NaN or infinity in an adapter, a delta, a merged value or a scale."""


class NotFoundError(Error, FileNotFoundError):
    """A file or folder that was named is not there."""


class ExistsError(Error, FileExistsError):
    """The output exists already."""


class UsageError(Error, ValueError):
    """Wrong options."""


class InternalError(Error, RuntimeError):
    """A defect of qmerge."""


class SurvivalError(Error):
    """The output was written, but less of the adapter is left than `min_survival` or `min_kept` asks for."""

    report: Report
    """What was done and what it cost."""


_CLASSES = {
    cls.__name__: cls
    for cls in (
        IoError,
        MalformedError,
        UnsupportedError,
        MismatchError,
        NotFiniteError,
        NotFoundError,
        ExistsError,
        UsageError,
        InternalError,
    )
}

_SWITCHES = {"allow-unused", "base-is-residual", "chat", "force", "peft-bugs", "resume"}


def _in_python(text: str) -> str:
    """Options of the program in the words of this module: `--force` is `force=True`, `--to bf16` is `to="bf16"`."""

    def option(match: re.Match[str]) -> str:
        name, value = match.group(1), match.group(3)
        word: str = name.replace("-", "_")
        if name in _SWITCHES:
            return f"{word}=True{match.group(2) or ''}"
        return f'{word}="{value}"' if value else word

    text = re.sub(r" <[A-Z_=>\[\]]+>(\.\.\.)?", "", text)
    return re.sub(r"--([a-z][a-z-]*)( (auto|always|bf16|f32|nearest|keep)\b)?", option, text)


_LEFT = {"behaviour": "what is kept in behaviour", "kept_output": "kept output", "survival": "survival"}


def low_survival(output: str, option: str, least: float | None, report: Report) -> SurvivalError:
    """The exception of a merge that kept too little."""
    verdict = report.verdict
    kept = "what is left" if verdict.by is None else _LEFT[verdict.by]
    share = "unknown" if verdict.kept is None else f"{verdict.kept:.3f}"
    error = SurvivalError(f"{kept} ({share}) is below {option} {least}: {verdict.text}")
    advice = report.verdict.advice
    error.file, error.hint, error.report = output, _in_python(advice) if advice else None, report
    return error


def make(
    name: str, message: str, file: str | None, tensor: str | None, hint: str | None, errno: int | None
) -> Error:
    """The exception of that class; called by the compiled half."""
    hint = _in_python(hint) if hint else None
    message = _in_python(message)
    error = _CLASSES.get(name, Error)(f"{message} ({hint})" if hint else message)
    error.file, error.tensor, error.hint = file, tensor, hint
    if isinstance(error, OSError):
        error.errno = errno
    return error
