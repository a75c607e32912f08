"""Merge trained adapters into model checkpoints on disk, quantized or not, and know what the merge cost.

>>> report = qmerge.merge("base-nf4", "my-lora", "merged")
>>> print(report.verdict.text)

A base, an adapter or a merge is a folder, a single file, or a hub id. What is not in the local Hugging Face cache is downloaded into it, unless
`HF_HUB_OFFLINE` is set; `read` and `tensors` look at what is there.
Every function lets other Python threads run while it works, and stops on Ctrl-C.
"""

from . import peft, ray, torch
from ._api import (
    calibrate,
    combine,
    compare,
    convert,
    convert_adapter,
    extract,
    finish,
    generate,
    inspect,
    merge,
    merge_part,
    plan,
    read,
    report,
    tensors,
    truncate,
    unmerge,
    verify,
)
from ._errors import (
    Error,
    ExistsError,
    InternalError,
    IoError,
    MalformedError,
    MismatchError,
    NotFiniteError,
    NotFoundError,
    SurvivalError,
    UnsupportedError,
    UsageError,
)
from ._progress import Progress
from ._qmerge import __version__
from ._results import (
    AdapterInspection,
    Calibration,
    CalibrationInspection,
    Comparison,
    Generation,
    Made,
    ModelInspection,
    PartDone,
    Plan,
    Report,
    Tensor,
    Truncation,
    Verification,
)

__all__ = [
    "AdapterInspection",
    "Calibration",
    "CalibrationInspection",
    "Comparison",
    "Error",
    "ExistsError",
    "Generation",
    "InternalError",
    "IoError",
    "Made",
    "MalformedError",
    "MismatchError",
    "ModelInspection",
    "NotFiniteError",
    "NotFoundError",
    "PartDone",
    "Plan",
    "Progress",
    "Report",
    "SurvivalError",
    "Tensor",
    "Truncation",
    "UnsupportedError",
    "UsageError",
    "Verification",
    "__version__",
    "calibrate",
    "combine",
    "compare",
    "convert",
    "convert_adapter",
    "extract",
    "finish",
    "generate",
    "inspect",
    "merge",
    "merge_part",
    "peft",
    "plan",
    "ray",
    "read",
    "report",
    "tensors",
    "torch",
    "truncate",
    "unmerge",
    "verify",
]
