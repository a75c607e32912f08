"""A merge over the machines of a Ray cluster: parts of it are tasks, and one more puts them together.

>>> qmerge.ray.merge("base-nf4", "my-lora", "merged", parts=8)

All nodes see the base, the adapter and the folder of the output under the same paths. The bytes are those of `qmerge.merge` on one machine. Needs Ray: `pip install "./bindings/python[ray]"` in a checkout.
`qmerge merge --on ray://HOST:PORT` is the same from a command line.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional

from ._api import _held, _merge_options, _with_defaults
from ._command import Adapters, Path, run
from ._errors import Error, ExistsError, InternalError, IoError, NotFoundError, UsageError
from ._progress import Raw, Watcher, callback
from ._results import Report

__all__ = ["merge"]

PAUSE = 1.0
"""Seconds between two looks at whether a part is done."""
NO_RAY = 9
"""What the module exits with where Ray is missing; the program knows it."""


def merge(
    base: Path,
    adapter: Optional[Adapters],
    output: Path,
    *,
    parts: Optional[int] = None,
    cpus: Optional[int] = None,
    retries: int = 3,
    progress: Watcher = None,
    **options: Any,
) -> Report:
    """Merges as `qmerge.merge` does, over the nodes of the Ray cluster that this process is connected to, or of a new one on this machine.

    A part whose node dies is begun again on another, and goes on where it was. After an interruption the same call with `resume=True` does what is left. Where the
    model is run to see what its layers are given, one task does it, and hands each layer's moments to the parts that need them.

    Args:
        base, adapter, output: as `qmerge.merge` takes them: addresses, hub ids, or paths that all nodes share; the output is a path.
        parts: how many parts (default: one for each node).
        cpus: processors that a part asks Ray for, and threads that it runs on (default: what the smallest node has).
        retries: how often a part is begun again after its node or its process died, or a read or write failed.
        progress: told of the parts that are done, as `qmerge.merge` tells of its work.
        options: as `qmerge.merge` takes them, except those of its progress.
    """
    ray = _ray()
    if "threads" in options:
        raise UsageError("threads are what Ray gives a part: pass cpus")
    for name in NOT_OPTIONS:
        if options.get(name) is not None:
            raise UsageError(f"qmerge.ray.merge takes no {name}")
    for name, number, least in (("parts", parts, 1), ("cpus", cpus, 1), ("retries", retries, 0)):
        is_number = isinstance(number, int) and not isinstance(number, bool) and number >= least
        if number is not None and not is_number:
            raise UsageError(f"{name} is a number from {least} on, not {number!r}")
    if "://" in os.fspath(output):
        raise UsageError("parts are written to a path that all nodes see, not to an address")
    if not ray.is_initialized():
        ray.init()
    output = os.path.abspath(output)
    for name in ("calibrate", "calibration", "imatrix", "original"):
        if options.get(name) is not None:
            options[name] = _absolute(options[name])
    if options.get("tuned") is not None:
        options["tuned"] = _adapters(options["tuned"])
    if options.get("report") is not None:
        # It need not be there yet.
        options["report"] = os.path.abspath(options["report"])
    if options.get("scratch") is not None:
        folder, is_sized, size = os.fspath(options["scratch"]).rpartition("=")
        options["scratch"] = f"{os.path.abspath(folder)}={size}" if is_sized else os.path.abspath(size)
    given = _with_defaults(options, base=_absolute(base), adapter=_adapters(adapter), output=output)
    job = _Job(_merge_options(given), None)
    size = _Size.of(ray, parts, cpus, retries)
    with callback(progress, "merge") as tell:
        status, text = _spread(ray, job, size, tell, as_text=False)
    return _held((status, json.loads(text)), output, options.get("min_kept"), options.get("min_survival"))


class _Job(NamedTuple):
    """A merge as its tasks know it."""

    words: list[str]
    """Of the command line, behind the command."""
    folder: Optional[str]
    """What its paths are relative to, if any are."""

    def call(self, command: str, extra: Sequence[str], left_out: Sequence[str] = ()) -> tuple[int, dict[str, Any]]:
        """Exit status and answer of a command on the same inputs."""
        self.enter()
        # In front, since there may be words that no option follows.
        return run(command, [*extra, *_without(self.words, left_out)], None)

    def enter(self) -> None:
        if self.folder is not None:
            try:
                os.chdir(self.folder)
            except OSError as error:
                raise NotFoundError(f"{self.folder}: a node of the cluster does not see this folder ({error})") from error

    def has(self, *names: str) -> bool:
        return any(word in names for word in self.words)


class _Size(NamedTuple):
    """How a merge is spread."""

    parts: int
    cpus: int
    retries: int

    @staticmethod
    def of(ray: Any, parts: Optional[int], cpus: Optional[int], retries: int) -> _Size:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        if not nodes:
            raise UsageError("no node of the Ray cluster has a processor to give")
        return _Size(parts or len(nodes), cpus or int(min(node["CPU"] for node in nodes)), retries)


OF_THE_WHOLE = ("--report", "--min-kept", "--min-survival", "--measure", "--push", "--upload-repo")
"""Options with a value that a part does not take."""
NOT_OPTIONS = ("moments", "part", "on", "dry_run", "residual_rank", "push", "upload_repo", "json", "quiet")
"""What a merge in parts cannot do, or does by itself."""
OF_A_RUN = ("--calibrate", "--calibration-tokens", "--calibration-time")
"""Options that say how the model is run for moments."""
FLAGS = ("--resume",)
"""Options without a value that are given anew."""


def _spread(ray: Any, job: _Job, size: _Size, tell: Optional[Raw], as_text: bool) -> tuple[int, str]:
    """Exit status and report of a merge: as JSON, or as the program prints it."""
    remote = ray.remote(num_cpus=size.cpus, max_retries=size.retries, retry_exceptions=[IoError, ExistsError])
    # What is wrong with the arguments is said before any part begins, and an output that is there is not found by the last of them.
    plan = _get(ray, remote(_prepare).options(retry_exceptions=False).remote(job, size))
    # Of the calibration's layers, up to the last that a part needs.
    count = 1 + max((number for part in plan["parts"] for number in part["layers"]), default=-1)
    is_run = bool(plan.get("runs_model")) and count > 0
    total = size.parts + 1 + is_run
    done = 0

    def told() -> None:
        if tell is not None:
            tell(done, total, "merging", "parts", max(0, done - is_run), size.parts)

    waiting: list[Any] = []
    try:
        header, layers = None, []
        if is_run:
            header, *layers = remote(_moments).options(num_returns=1 + count).remote(job, size, count)
            told()
            waiting = [header]
            _get(ray, header)
            waiting = []
            done += 1
        one = remote(_part)
        for part in plan["parts"]:
            moments = None if header is None else [header, *(layers[number] for number in part["layers"])]
            waiting.append(one.remote(job, size, part["part"], moments))
        told()
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=PAUSE)
            for part in ready:
                _get(ray, part)
                done += 1
                told()
        last = remote(_finish).remote(job, size, None if header is None else [header], as_text)
        waiting = [last]
        answer: tuple[int, str, str] = _get(ray, last)
        waiting = []
        sys.stderr.write(answer[2])
        return answer[0], answer[1]
    finally:
        for task in waiting:
            ray.cancel(task, force=True)


def _get(ray: Any, task: Any) -> Any:
    """What a task came to. Its errors are those that this package raises, without Ray's lines around them."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Error):
            raise cause from None
        raise


def _prepare(job: _Job, size: _Size) -> dict[str, Any]:
    """The plan of a merge that can be begun."""
    # Of one part nothing would be said.
    planned = job.call("plan", [f"--parts={max(2, size.parts)}", f"--threads={size.cpus}"], OF_THE_WHOLE)[1]
    if size.parts == 1:
        layers = sorted({number for part in planned["parts"] for number in part["layers"]})
        planned["parts"] = [{"part": 1, "layers": layers}]
    output = planned["output"]["path"]
    force = job.has("--force", "--overwrite")
    if os.path.lexists(output) and not force:
        raise ExistsError(f"{output}: the output exists already")
    if force and not job.has("--resume"):
        # Parts that an interrupted merge left are given up.
        for folder in glob.glob(f"{glob.escape(output)}.part-*-of-*"):
            if os.path.isfile(os.path.join(folder, "qmerge-journal.jsonl")):
                shutil.rmtree(folder)
    return planned


def _moments(job: _Job, size: _Size, count: int) -> Iterator[Any]:
    """What the model's layers are given: the beginning of the file that holds it, and of each layer where its bytes lie and what they are."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "moments.safetensors")
        job.call("merge", [f"--moments={path}", f"--threads={size.cpus}"], (*OF_THE_WHOLE, *FLAGS))
        with open(path, "rb") as file:
            head = file.read(8)
            head += file.read(struct.unpack("<Q", head)[0])
            ranges = _ranges(head)
            if len(ranges) != count:
                raise InternalError(f"moments of {len(ranges)} layers were taken, and the plan has {count}")
            yield head
            for start, end in ranges:
                file.seek(len(head) + start)
                yield start, file.read(end - start)


def _ranges(head: bytes) -> list[tuple[int, int]]:
    """Where each layer of a file of moments begins and ends, behind its header."""
    header = json.loads(head[8:])
    ranges: dict[int, tuple[int, int]] = {}
    for own in json.loads(header["__metadata__"]["qmerge.inputs"]):
        start, end = header[own["weights"][0]]["data_offsets"]
        first, last = ranges.get(own["layer"], (start, end))
        ranges[own["layer"]] = min(first, start), max(last, end)
    return [ranges[number] for number in sorted(ranges)]


@contextmanager
def _file_of(moments: Optional[list[Any]]) -> Iterator[list[str]]:
    """The option for a file with the moments of some layers; it is as long as that of all, and holds nothing where others are."""
    if moments is None:
        yield []
        return
    import ray

    head = ray.get(moments[0])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "moments.safetensors")
        with open(path, "wb") as file:
            file.write(head)
            file.truncate(len(head) + max((end for _, end in _ranges(head)), default=0))
            for layer in moments[1:]:
                # One at a time.
                start, content = ray.get(layer)
                file.seek(len(head) + start)
                file.write(content)
        yield [f"--calibration={path}"]


def _part(job: _Job, size: _Size, number: int, moments: Optional[list[Any]]) -> None:
    left_out = (*OF_THE_WHOLE, *FLAGS, *(OF_A_RUN if moments else ()))
    with _file_of(moments) as calibration:
        # One that was begun by a node that died goes on.
        job.call("merge", [f"--part={number}/{size.parts}", f"--threads={size.cpus}", "--resume", *calibration], left_out)


def _finish(job: _Job, size: _Size, moments: Optional[list[Any]], as_text: bool) -> tuple[int, str, str]:
    left_out = (*FLAGS, *(OF_A_RUN if moments else ()))
    with _file_of(moments) as calibration:
        extra = [f"--threads={size.cpus}", "--resume", *calibration]
        if not as_text:
            status, document = job.call("finish", extra, left_out)
            return status, json.dumps(document), ""
        job.enter()
        words = [sys.executable, "-m", "qmerge", "finish", *extra, *_without(job.words, left_out)]
        done = subprocess.run(words, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr


def _without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Words without some options and their values."""
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            return [*kept, word, *rest]
        name, is_one, _ = word.partition("=")
        if name not in names:
            kept.append(word)
        elif not is_one and name not in FLAGS:
            next(rest, None)
    return kept


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError("qmerge.ray needs Ray: pip install ray") from error
    return ray


def _absolute(path: Path) -> str:
    """Workers have a folder of their own. What is no path is a hub id."""
    text = os.fspath(path)
    return os.path.abspath(text) if os.path.lexists(text) else text


def _adapters(value: Optional[Adapters]) -> Any:
    if value is None:
        return None
    if isinstance(value, (str, os.PathLike)):
        return _absolute(value)
    if isinstance(value, dict):
        return {_absolute(path): weight for path, weight in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], (int, float)):
        return (_absolute(value[0]), value[1])
    return [_adapters(item) for item in value]


def _main(words: list[str]) -> int:
    """What the program starts through `qmerge._on`: `--on CLUSTER --version VERSION -- WORDS`."""
    from . import __version__

    _, cluster, _, version, _, *own = words
    try:
        ray = _ray()
    except UsageError:
        return NO_RAY
    try:
        if version != __version__:
            raise UsageError(f"the program is qmerge {version}, and the Python package {__version__}")
        ray.init(address=None if cluster == "ray" else cluster, log_to_driver=False, logging_level="ERROR")
        job = _Job(own, os.getcwd())
        quiet = job.has("-q", "--quiet", "--json")
        with callback(not quiet, "merge") as tell:
            status, text = _spread(ray, job, _Size.of(ray, None, None, 3), tell, as_text=True)
        sys.stdout.write(text)
        return status
    except KeyboardInterrupt:
        return 130
    except (Error, ConnectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, (IoError, ConnectionError)) else 2
