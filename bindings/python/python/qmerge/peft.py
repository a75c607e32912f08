"""For those who come from PEFT: `merge_and_save` in place of `merge_and_unload` and `save_pretrained`.

>>> qmerge.peft.merge_and_save(model, "merged")

PEFT merges in memory, and transformers refuses to save what bitsandbytes then holds; this merges the files on disk.
PEFT itself is not imported: a live model brings it along.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any, Optional, Union

from ._api import inspect, merge
from ._command import Adapters, Path
from ._errors import UsageError
from ._results import ModelInspection, Report

__all__ = ["merge_and_save"]


def merge_and_save(
    model: Union[tuple[Path, Adapters], Any],
    output: Path,
    *,
    base: Optional[Path] = None,
    adapter_names: Optional[Sequence[str]] = None,
    **options: Any,
) -> Report:
    """Merges the active adapters of a live `PeftModel`, or adapters on disk, into the base on disk.

    Args:
        model: a `PeftModel`, whose adapter is taken as it is in memory, or a pair `(base, adapter)` of paths or hub ids.
        output: folder to write.
        base: the base on disk, if it is not where the live model was loaded from.
        adapter_names: adapters to merge instead of the active ones.
        options: as `qmerge.merge` takes them.
    """
    if isinstance(model, tuple):
        source, adapter = model
        return merge(base or source, adapter, output, adapter_names=adapter_names, **options)
    if not hasattr(model, "peft_config") or not hasattr(model, "save_pretrained"):
        raise UsageError(f"{type(model).__name__} is no PeftModel, and no pair of base and adapter")
    names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names or _active(model))
    for name in names:
        if name not in model.peft_config:
            raise UsageError(f"the model has no adapter `{name}`")
    base = base or _base_of(model, names)
    _warn_of_other_format(model, base)
    with tempfile.TemporaryDirectory(prefix="qmerge-") as temporary:
        # A name that is the same every time: it stands in the output's card.
        folder = os.path.join(temporary, "adapter")
        os.mkdir(folder)
        model.save_pretrained(folder, selected_adapters=names)
        return merge(base, folder, output, adapter_names=names, **options)


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
    if isinstance(found, ModelInspection) and set(found.format.split(" + ")) <= {"f32", "f16", "bf16"}:
        warnings.warn(
            f"the model was quantized as it was loaded, but {os.fspath(base)} is {found.format}: the merge is made with these "
            'weights. Pass to="nf4" (or "fp4", "int8") for an output in the format that was trained on.',
            stacklevel=3,
        )
