"""A merge over the machines of a Ray cluster: parts of it are tasks, and one more puts them together.

>>> qmerge.ray.merge("base-nf4", "my-lora", "merged", parts=8)

All nodes see the base, the adapter and the folder of the output under the same paths. The bytes are those of `qmerge.merge` on one machine. Needs `pip install "qmerge[ray]"`.
"""

from __future__ import annotations

import glob
import os
import shutil
from typing import Any, Optional

from ._api import finish, merge_part, plan
from ._command import Adapters, Path
from ._errors import ExistsError, IoError, UsageError
from ._progress import Watcher, callback
from ._results import Report

__all__ = ["merge"]

PAUSE = 1.0
"""Seconds between two looks at whether a part is done."""


def merge(
    base: Path,
    adapter: Adapters,
    output: Path,
    *,
    parts: Optional[int] = None,
    cpus: Optional[int] = None,
    retries: int = 3,
    progress: Watcher = None,
    **options: Any,
) -> Report:
    """Merges as `qmerge.merge` does, over the nodes of the Ray cluster that this process is connected to, or of a new one on this machine.

    A part whose node dies is begun again on another, and goes on where it was. After an interruption the same call with `resume=True` does what is left.

    Args:
        base, adapter, output: as `qmerge.merge` takes them: addresses, hub ids, or paths that all nodes share; the output is a path.
        parts: how many parts (default: one for each node).
        cpus: processors that a part asks Ray for, and threads that it runs on (default: what the smallest node has).
        retries: how often a part is begun again after its node or its process died, or a read or write failed.
        progress: told of the parts that are done, as `qmerge.merge` tells of its work.
        options: as `qmerge.merge` takes them, except those of its progress.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("qmerge.ray needs Ray: pip install 'qmerge[ray]'") from error
    if "threads" in options:
        raise UsageError("threads are what Ray gives a part: pass cpus")
    if not ray.is_initialized():
        ray.init()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        raise UsageError("no node of the Ray cluster has a processor to give")
    cpus = cpus or int(min(node["CPU"] for node in nodes))
    parts = parts or len(nodes)
    if "://" in os.fspath(output):
        raise UsageError("parts are written to a path that all nodes see, not to an address")
    options.update(base=_absolute(base), adapter=_adapters(adapter), output=os.path.abspath(output), threads=cpus)
    for name in ("calibrate", "calibration", "imatrix", "original", "report"):
        if options.get(name) is not None:
            options[name] = _absolute(options[name])
    # What is wrong with the arguments is said before any node begins, and an output that is there is not found by the last of them.
    of_plan = {name: value for name, value in options.items() if name not in _OF_THE_WHOLE}
    plan(**of_plan)
    if os.path.lexists(options["output"]) and not options.get("force"):
        raise ExistsError(f"{options['output']}: the output exists already")

    remote = ray.remote(num_cpus=cpus, max_retries=retries, retry_exceptions=[IoError, ExistsError])
    if options.get("force") and not options.get("resume"):
        _remove_parts(options["output"])
    # A part that was begun by a node that died goes on.
    of_parts = {**of_plan, "resume": True}
    one = remote(_part)
    waiting = [one.remote(f"{number}/{parts}", of_parts) for number in range(1, parts + 1)]
    with callback(progress, "merge") as tell:
        try:
            while waiting:
                done, waiting = ray.wait(waiting, timeout=PAUSE)
                ray.get(done)
                if tell is not None:
                    tell(parts - len(waiting), parts + 1, "merging", "parts", parts - len(waiting), parts)
            options["resume"] = True
            return Report(ray.get(remote(_finish).remote(options)))
        finally:
            for task in waiting:
                ray.cancel(task, force=True)


_OF_THE_WHOLE = {"resume", "report", "min_kept", "min_survival", "measure"}
"""Options that a plan does not take."""


def _part(part: str, options: dict[str, Any]) -> dict[str, Any]:
    return merge_part(part=part, **options).to_dict()


def _finish(options: dict[str, Any]) -> dict[str, Any]:
    return finish(**options).to_dict()


def _remove_parts(output: str) -> None:
    """Parts that an interrupted merge left are given up."""
    for folder in glob.glob(f"{glob.escape(output)}.part-*-of-*"):
        if os.path.isfile(os.path.join(folder, "qmerge-journal.jsonl")):
            shutil.rmtree(folder)


def _absolute(path: Path) -> str:
    """Workers have a folder of their own. What is no path is a hub id."""
    text = os.fspath(path)
    return os.path.abspath(text) if os.path.lexists(text) else text


def _adapters(value: Adapters) -> Any:
    if isinstance(value, (str, os.PathLike)):
        return _absolute(value)
    if isinstance(value, dict):
        return {_absolute(path): weight for path, weight in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], (int, float)):
        return (_absolute(value[0]), value[1])
    return [_adapters(item) for item in value]
