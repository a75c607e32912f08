"""For those who come from PEFT: `merge_and_save` in place of `merge_and_unload` and `save_pretrained`.

>>> qmerge.peft.merge_and_save(model, "merged")

PEFT merges in memory, and transformers refuses to save what bitsandbytes then holds; this merges the files on disk.
PEFT itself is not imported: a live model brings it along.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from inspect import signature
from typing import Any, Literal, Optional, Union

from . import _qmerge
from ._api import combine, inspect, merge
from ._command import Adapters, Path
from ._errors import ExistsError, UsageError
from ._own import can_write
from ._results import Made, ModelInspection, Report
from .torch import FILE_NAME, Text, calibrate as calibrate_live

__all__ = ["add_weighted_adapter", "merge_and_save"]

COARSE = ("nf4", "fp4", "int8")
"""Formats that are rounded to by what layers are given."""

MOST_SUMS = 4 << 30
"""Bytes beside the live model's: where its moments take more, it is run several times."""


def merge_and_save(
    model: Union[tuple[Path, Adapters], Any],
    output: Path,
    *,
    base: Optional[Path] = None,
    adapter_names: Optional[Sequence[str]] = None,
    calibrate: Union[Path, Iterable[Text], None] = None,
    **options: Any,
) -> Report:
    """Merges the active adapters of a live `PeftModel`, or adapters on disk, into the base on disk.

    Where weights are to be rounded, the merge is calibrated: by qmerge itself, which runs the base on disk, or by the live model in torch. The live model is run
    where `calibrate` is a list of texts, and where the base is of a family that qmerge does not run, unless an option says how to round.

    Args:
        model: a `PeftModel`, whose adapter is taken as it is in memory, or a pair `(base, adapter)` of paths or hub ids.
        output: folder to write.
        base: the base on disk, if it is not where the live model was loaded from.
        adapter_names: adapters to merge instead of the active ones.
        calibrate: the path of a text file, for qmerge to run the base on; or texts for the live model to run on: strings, lists of token ids, or dictionaries
            that it is called with (see `qmerge.torch.calibrate`).
        options: as `qmerge.merge` takes them.
    """
    if isinstance(model, tuple):
        source, adapter = model
        if calibrate is not None and not _is_path(calibrate):
            raise UsageError("texts are for a live model: adapters on disk are calibrated on the path of a text file")
        return merge(base or source, adapter, output, adapter_names=adapter_names, calibrate=calibrate, **options)  # type: ignore[arg-type]
    if not hasattr(model, "peft_config") or not hasattr(model, "save_pretrained"):
        raise UsageError(f"{type(model).__name__} is no PeftModel, and no pair of base and adapter")
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names or _active(model))
    for name in names:
        if name not in model.peft_config:
            raise UsageError(f"the model has no adapter `{name}`")
    # What is wrong is said before the model runs.
    unknown = [name for name in options if name not in signature(merge).parameters]
    if unknown:
        raise UsageError(f"merge has no option `{unknown[0]}`")
    if os.path.exists(output) and not options.get("force"):
        raise ExistsError(f"{os.fspath(output)}: the output exists already (force=True replaces it)")
    base = base or _base_of(model, names)
    if options.get("to") not in COARSE:
        _warn_of_other_format(model, base)
    with tempfile.TemporaryDirectory(prefix="qmerge-") as temporary:
        # A name that is the same every time: it stands in the output's card.
        folder = os.path.join(temporary, "adapter")
        os.mkdir(folder)
        model.save_pretrained(folder, selected_adapters=names)
        if _is_path(calibrate):
            options["calibrate"] = calibrate
        elif calibrate is not None or _needs_torch(model, base, names, options):
            if names != _active(model):
                raise UsageError(f"the live model runs with {_active(model)}, not with {names}: call set_adapter first")
            texts: Any = calibrate
            options["calibration"] = os.path.join(temporary, FILE_NAME)
            calibrate_live(model, texts, options["calibration"], max_bytes=MOST_SUMS)
        return merge(base, folder, output, adapter_names=names, **options)


def add_weighted_adapter(
    adapters: Sequence[Path],
    weights: Sequence[float],
    output: Path,
    combination_type: str = "svd",
    *,
    svd_rank: Optional[int] = None,
    density: Optional[float] = None,
    majority_sign_method: Optional[Literal["total", "frequency"]] = None,
    **options: Any,
) -> Made:
    """`qmerge.combine` by the names of PEFT's `LoraModel.add_weighted_adapter`, for adapters on disk, into a folder.

    Args:
        adapters, weights: folders or hub ids of LoRAs, and a weight for each.
        output: folder of the new adapter.
        combination_type: "svd", "cat", "linear", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd", "magnitude_prune" or "magnitude_prune_svd".
        svd_rank, density, majority_sign_method: as PEFT has them.
        options: as `qmerge.combine` takes them.
    """
    if len(adapters) != len(weights):
        raise UsageError(f"{len(adapters)} adapters, and {len(weights)} weights")
    pairs = [(adapter, float(weight)) for adapter, weight in zip(adapters, weights)]
    return combine(
        pairs,
        output,
        method=combination_type,
        rank=svd_rank,
        density=density,
        majority_sign=majority_sign_method,
        **options,
    )


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _needs_torch(model: Any, base: Path, names: Sequence[str], options: dict[str, Any]) -> bool:
    """True where a merge goes by moments, the base cannot be run without torch, and the live model is run with these adapters and can write."""
    says = ("fast", "calibration", "imatrix", "original")
    if any(options.get(name) for name in says) or options.get("rounding", "auto") in ("stochastic", "keep", "nearest", "original"):
        return False
    if not can_write(model) or list(names) != _active(model):
        return False
    is_coarse = options.get("to") in COARSE
    if not is_coarse:
        found = inspect(base)
        is_coarse = isinstance(found, ModelInspection) and not _is_plain(found)
    return is_coarse and _qmerge.why_not_run(_qmerge.resolve(base)) is not None


def _is_plain(found: ModelInspection) -> bool:
    return set(found.format.split(" + ")) <= {"f32", "f16", "bf16"}


def _active(model: Any) -> list[str]:
    active = getattr(model, "active_adapters", None) or model.active_adapter
    return [active] if isinstance(active, str) else list(active() if callable(active) else active)


def _base_of(model: Any, names: Sequence[str]) -> str:
    trained_on = (model.peft_config[name].base_model_name_or_path for name in names)
    for place in (getattr(model.get_base_model(), "name_or_path", None), *trained_on):
        if place:
            return str(place)
    raise UsageError("the model does not say where its base was loaded from: pass base=")


def _warn_of_other_format(model: Any, base: Path) -> None:
    """A base that was quantized while it was loaded is not what lies on disk."""
    config = getattr(model.get_base_model(), "config", None)
    if getattr(config, "quantization_config", None) is None:
        return
    found = inspect(base)
    if isinstance(found, ModelInspection) and _is_plain(found):
        warnings.warn(
            f"the model was quantized as it was loaded, but {os.fspath(base)} is {found.format}: the merge is made with these "
            'weights. Pass to="nf4" (or "fp4", "int8") for an output in the format that was trained on.',
            stacklevel=3,
        )
