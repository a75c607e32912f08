"""What layers of a live torch model are given: sums of x·xᵀ, taken by hooks, and the file that `merge` reads them from.

Of what gives attention's queries, keys and values, a token counts half by the attention that is paid to it, where the model's attention says so (`_attention.py`).

Nothing here changes what a model computes. torch is imported where it is used, so that the package needs none.
"""

from __future__ import annotations

import importlib
import json
import os
import struct
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Optional

from . import _attention
from ._command import Path
from ._errors import ExistsError, UsageError

INFIXES = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer", "original_module"}
"""Components that wrappers put into names, and checkpoints do not have."""

OTHERS = ("key_value_states", "encoder_hidden_states", "cross_attention_states")
"""What attention to another sequence is called with, by transformers' names."""

OF_OTHERS = ("EncDecAttention", "encoder_attn", "cross_attn", "cross_attention", "crossattention")
"""Attention of a decoder to an encoder, as modules are called."""

OF_ENCODER = ("k", "v", "k_proj", "v_proj", "key", "value")
"""Its layers that are given the encoder's output."""

SEEING = ("vision", "visual", "image", "audio")
"""Beginnings of components whose inputs are no tokens of a text, so that a text's mask says nothing of them."""

SIZES = {"f32": 4, "bf16": 2}
"""Bytes of a value, by element type of the file."""

MARKS, VALUES = 8, 8
"""Tensors that a model is known by, and their first values."""


def torch() -> Any:
    return importlib.import_module("torch")


def name_on_disk(name: str) -> str:
    """A module's or parameter's name without what wrappers put into it."""
    path = [part for part in name.split(".") if part not in INFIXES]
    for prefix in (["module"], ["base_model", "model"], ["module"]):
        if path[: len(prefix)] == prefix:
            path = path[len(prefix) :]
    return ".".join(path)


def features(module: Any) -> Optional[int]:
    """The number of inputs of a linear layer; None for any other module. GPT-2's Conv1D is one, bitsandbytes' layers are."""
    number = getattr(module, "in_features", getattr(module, "nx", None))
    is_linear = hasattr(module, "weight") or hasattr(module, "qweight")
    return number if is_linear and isinstance(number, int) and not hasattr(module, "base_layer") else None


def targets(model: Any) -> dict[str, Any]:
    """The linear layers that an adapter changes, or all but the output embedding where there is none, by the names of their weights."""
    found: dict[str, Any] = {}
    is_adapted = hasattr(model, "peft_config")
    for name, module in model.named_modules():
        inner = module
        while hasattr(inner, "base_layer"):
            inner = inner.base_layer
        if inner is not module:
            is_adapted = True
            if features(inner) is not None:
                found.setdefault(name_on_disk(name) + ".weight", inner)
    if is_adapted:
        if not found:
            raise UsageError("the model's adapter changes no linear layer")
        return found
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for name, module in model.named_modules():
        if features(module) is not None and module is not head:
            found.setdefault(name_on_disk(name) + ".weight", module)
    if not found:
        raise UsageError("the model has no linear layer")
    return found


def is_encoder_decoder(model: Any) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def holder(name: str) -> str:
    """The module that holds the layer with a weight of this name."""
    return name.rpartition(".")[0].rpartition(".")[0]


def are_of(tokens: Any, x: Any) -> bool:
    """Whether values (sequences, tokens) are one for each token of an input, which may have them all in a row, or a dimension of one head."""
    shape = [[size for size in of if size != 1] for of in (tokens.shape, x.shape[:-1])]
    return shape[0] == shape[1] or (x.ndim == 2 and tokens.numel() == len(x))


class _Input:
    """An input that some modules are given, whose errors count alike."""

    def __init__(self, first: str, size: int) -> None:
        self.names = [first]
        self.features = size
        self.tokens = 0
        self.sum: Any = None


class Moments:
    """Takes sums while the model runs; `remove` ends that.

    Args:
        modules: linear layers by name.
        device: where sums are kept; None for that of each module's input.
        count: tells, as the model begins a pass, whether it counts.
        only: names whose sums are taken; the others are counted alone.
        forgives: an error while sums are taken ends that, with a warning, and not what the model is doing.
    """

    def __init__(
        self,
        model: Any,
        modules: dict[str, Any],
        device: Optional[str] = None,
        count: Callable[[], bool] = lambda: True,
        only: Optional[set[str]] = None,
        forgives: bool = False,
    ) -> None:
        self.failed = False
        self._forgives, self._is_encoder_decoder = forgives, is_encoder_decoder(model)
        self.inputs: dict[str, _Input] = {}
        self._of: dict[str, _Input] = {}
        self._recent: dict[tuple[int, str], tuple[Any, int, _Input]] = {}
        # Inputs whose tokens' weights the attention of their holder will say.
        self._waiting: dict[str, list[tuple[_Input, Any]]] = {}
        self._masks: dict[str, Any] = {}
        self._device, self._count, self._only = device, count, only
        self._counts = False
        self._hooks = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            # A pass that is computed again for its gradients, as checkpointing does, comes after the model's own end, and is not counted.
            model.register_forward_hook(self._end, always_call=True),
        ]
        for name, module in modules.items():
            self._hooks.append(module.register_forward_pre_hook(self._taker(name), with_kwargs=True))
        holders = {holder(name) for name in modules if _attention.is_weighted(name)}
        # Those that attend to another sequence just now.
        self._crossing: set[str] = set()
        paths = {module: name_on_disk(path) for path, module in model.named_modules() if name_on_disk(path) in holders}
        self._holders = weakref.WeakKeyDictionary(paths)
        for module, path in paths.items():
            self._hooks.append(module.register_forward_pre_hook(self._beginner(path), with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._ender(path), always_call=True))
        self._unwatch = _attention.watch(self._weigh) if holders else lambda: None

    def remove(self) -> None:
        self._unwatch()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._recent.clear()
        self._waiting.clear()

    @property
    def tokens(self) -> int:
        """Tokens that the layer with most of them was given."""
        return max((found.tokens for found in self.inputs.values()), default=0)

    def _begin(self, _model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        self._counts = not self.failed and self._count()
        masks = {name: kwargs.get(name) for name in ("attention_mask", "decoder_attention_mask")}
        self._masks = {name: mask for name, mask in masks.items() if getattr(mask, "ndim", 0) == 2}

    def _end(self, *_: Any) -> None:
        for path in list(self._waiting):
            self._settle(path)
        self._counts = False
        self._masks = {}
        self._recent.clear()

    def _taker(self, name: str) -> Callable[[Any, Any, dict[str, Any]], None]:
        def take(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x: Any = args[0] if args else next(iter(kwargs.values()), None)
            if self._counts and getattr(x, "ndim", 0) >= 2 and x.is_floating_point():
                try:
                    self._take(name, x)
                except Exception as error:  # noqa: BLE001 (whatever it is: what it stops is said there)
                    self._give_up(error)

        return take

    def _beginner(self, path: str) -> Callable[..., None]:
        def begin(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            crosses = any(kwargs.get(name) is not None for name in OTHERS)
            (self._crossing.add if crosses else self._crossing.discard)(path)

        return begin

    def _ender(self, path: str) -> Callable[..., None]:
        def end(*_: Any) -> None:
            # Its attention was not called where that can be seen. Nothing waits longer, so that inputs of one layer at a time are kept.
            self._settle(path)

        return end

    def _weigh(self, module: Any, weights: Callable[[Any], Any]) -> None:
        path = self._holders.get(module)
        if self._counts and path in self._waiting:
            self._settle(path, None if path in self._crossing else weights)

    def _give_up(self, error: Exception) -> None:
        """Lets go of all sums, where the model is doing something that is worth more than they are."""
        if not self._forgives:
            raise error
        # Not the error itself, which holds what did not fit.
        self.failed = True
        self._masks = {}
        self.remove()
        self.inputs.clear()
        self._of.clear()
        self._counts = False
        warnings.warn(f"no moments are taken: {error}", stacklevel=2)

    def _settle(self, path: str, weights: Optional[Callable[[Any], Any]] = None) -> None:
        """Adds what waits for the weights of a module's attention; without them each token counts once."""
        waiting = self._waiting.pop(path, [])
        try:
            known = None
            if weights is not None and any(self._sums(to) for to, _ in waiting):
                known = weights(self._mask_of(*waiting[0]))
            for to, x in waiting:
                is_of_it = known is not None and are_of(known, x)
                self._add(to, x, self._counted(known, self._mask_of(to, x)) if is_of_it else None)
        except Exception as error:  # noqa: BLE001 (whatever it is: what it stops is said there)
            self._give_up(error)

    def _counted(self, weights: Any, mask: Optional[Any]) -> Any:
        """What each token counts, 1 in the mean of each row: half by its weight, half like all others."""
        lib = torch()
        with lib.no_grad():
            number = weights.shape[1] if mask is None else mask.reshape(weights.shape).to(weights.device).bool().sum(1, keepdim=True)
            mean = weights.sum(1, keepdim=True) / number
            return lib.where(mean > 0, (1 + weights / mean) / 2, lib.ones_like(weights))

    def _sums(self, to: _Input) -> bool:
        return self._only is None or to.names[0] in self._only

    def _take(self, name: str, x: Any) -> None:
        # Other attentions pay to the same tokens what they pay.
        attention = holder(name) if _attention.is_weighted(name) else ""
        held = self._recent.get((id(x), attention))
        mine = self._of.get(name)
        # The very tensor that another layer was given: queries, keys and values are three layers and one input.
        if held is not None and held[0]() is x and held[1] == x._version:
            if mine is held[2]:
                return
            if mine is None:
                held[2].names.append(name)
                self._of[name] = held[2]
                return
        if mine is None or mine.names[0] != name:
            # New, or parted from the layer that it shared with so far: it counts from here on.
            if mine is not None:
                mine.names.remove(name)
            mine = self._of[name] = self.inputs[name] = _Input(name, x.shape[-1])
        if attention:
            self._waiting.setdefault(attention, []).append((mine, x))
        else:
            self._add(mine, x)
        self._recent = {key: entry for key, entry in self._recent.items() if entry[0]() is not None}
        self._recent[id(x), attention] = (weakref.ref(x), x._version, mine)

    def _mask_of(self, to: _Input, x: Any) -> Optional[Any]:
        """Which tokens of an input are no padding; None where all are, or it is not known."""
        path = to.names[0].split(".")
        if any(part.startswith(SEEING) for part in path):
            return None
        # What a decoder asks an encoder's output for has the tokens of that, and all else in it its own.
        asks = any(part in OF_OTHERS for part in path) and path[-2] in OF_ENCODER
        is_own = self._is_encoder_decoder and "encoder" not in path and not asks
        mask = self._masks.get("decoder_attention_mask" if is_own else "attention_mask")
        return mask if mask is not None and are_of(mask, x) else None

    def _add(self, to: _Input, x: Any, weights: Optional[Any] = None) -> None:
        lib = torch()
        with lib.no_grad(), lib.autocast(device_type=x.device.type, enabled=False):
            rows = x.detach().reshape(-1, x.shape[-1])
            mask = self._mask_of(to, x)
            if weights is not None:
                weights = weights.reshape(-1).to(rows.device)
            if mask is not None:
                chosen = mask.reshape(-1).to(rows.device).bool()
                rows, weights = rows[chosen], None if weights is None else weights[chosen]
            to.tokens += len(rows)
            if not self._sums(to):
                return
            rows = rows.float()
            if to.sum is None:
                place = self._device or x.device
                to.sum = lib.zeros(to.features, to.features, dtype=lib.float32, device=place)
            if weights is not None:
                rows = rows * weights.sqrt()[:, None]
            if to.sum.device == rows.device:
                to.sum.addmm_(rows.T, rows)
            else:
                to.sum += (rows.T @ rows).to(to.sum.device)


def _pick(tensors: Sequence[tuple[str, Any]]) -> dict[str, list[float]]:
    """The first values of some tensors, spread over all."""
    kinds = {"Params4bit", "Int8Params"}
    usable = [
        (name, tensor)
        for name, tensor in tensors
        if tensor.is_floating_point()
        and tensor.numel() > 0
        and tensor.device.type != "meta"
        and type(tensor).__name__ not in kinds
        # A shard of a tensor does not begin where the tensor does.
        and not hasattr(tensor.data, "to_local")
        and not getattr(tensor, "_fsdp_flattened", False)
        and "_flat_param" not in name
    ]
    step = max(1, -(-len(usable) // MARKS))
    return {name: tensor.detach().reshape(-1)[:VALUES].float().cpu().tolist() for name, tensor in usable[::step]}


def _gathered(model: Any) -> dict[int, Any]:
    """Of parameters that `FullyShardedDataParallel` has cut up: the first values of each, by its identity. All processes must ask."""
    found = {}
    for unit in model.modules():
        if type(unit).__name__ == "FullyShardedDataParallel":
            # Unit by unit: the whole model need not fit.
            with type(unit).summon_full_params(unit, recurse=False, writeback=False):
                # Those of units within it are still cut up, and follow.
                found.update({id(tensor): tensor.detach().reshape(-1)[:VALUES].clone() for tensor in unit.parameters()})
    return found


def _is_of(dicts: set[str], parts: Sequence[str], adapter: str) -> bool:
    """True for a parameter of the adapter: its name follows a dictionary of adapters, and not any other component."""
    return any(part == adapter and ".".join(parts[:at]) in dicts for at, part in enumerate(parts))


def marks(model: Any, together: bool) -> dict[str, str]:
    """What says of which model and which adapter moments are, as `merge` compares it: values of tensors that no format quantizes. `together`: every process of a model that
    is cut up asks, so that what is cut up can be gathered."""
    adapters = list(getattr(model, "peft_config", {}))
    plain, trained = [], []
    gathered = _gathered(model) if together else {}
    dicts = {path for path, module in model.named_modules() if type(module).__name__.endswith("Dict")}
    for path, module in model.named_modules():
        for last, tensor in module.named_parameters(recurse=False):
            parts = (f"{path}.{last}" if path else last).split(".")
            own = [adapter for adapter in adapters if _is_of(dicts, parts, adapter)]
            if own and "modules_to_save" not in parts:
                trained.append((own[0], parts, gathered.get(id(tensor), tensor)))
            elif not own and features(module) is None and not (adapters and tensor.requires_grad):
                plain.append((name_on_disk(".".join(parts)), gathered.get(id(tensor), tensor)))
    found = {"qmerge.model": json.dumps(_pick(plain))}
    if not json.loads(found["qmerge.model"]):
        raise UsageError("none of the model's norms and embeddings can be read, so nothing says of which model the moments are")
    # transformers' models have the attribute without an adapter too, and raise when they are asked.
    active = getattr(model, "active_adapters", []) if adapters else []
    active = active() if callable(active) else active
    if len(active) == 1:
        saved = [(".".join(part for part in parts if part != own), tensor) for own, parts, tensor in trained if own == active[0]]
        chosen = _pick(saved)
        if chosen:
            found["qmerge.adapter"] = json.dumps(chosen)
    return found


def layer_of(name: str) -> str:
    """The path up to the first number in it: weights that have it in common are of one layer."""
    path = name.split(".")
    number = next((at for at, part in enumerate(path) if part.isdigit()), len(path) - 1)
    return ".".join(path[: number + 1])


def write(
    path: Path,
    inputs: Sequence[_Input],
    sums: Iterable[Any],
    taken_from: str,
    known_by: dict[str, str],
    dtype: str,
) -> int:
    """Writes a calibration, one sum in memory at a time, whole or not at all. Returns its length in bytes."""
    lib = torch()
    size = SIZES[dtype]
    header: dict[str, Any] = {}
    kept, at, number, last = [], 0, -1, None
    for found in inputs:
        layer = layer_of(found.names[0])
        number, last = number + (layer != last), layer
        end = at + size * found.features**2
        shape = [found.features, found.features]
        header[found.names[0]] = {"dtype": dtype.upper(), "shape": shape, "data_offsets": [at, end]}
        kept.append({"layer": number, "tokens": found.tokens, "weights": found.names})
        at = end
    metadata = {"qmerge.taken_from": taken_from, "qmerge.inputs": json.dumps(kept), "format": "pt", **known_by}
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    text += b" " * (-len(text) % 8)
    partial = os.fspath(path) + ".partial"
    try:
        with open(partial, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for found, total in zip(inputs, sums):
                values = (total / found.tokens).to("cpu", lib.bfloat16 if dtype == "bf16" else lib.float32)
                file.write(values.contiguous().view(lib.uint8).numpy().tobytes())
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    return 8 + len(text) + at


def refuse_existing(path: Path, force: bool) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise UsageError(f"{os.fspath(path)}: it is a folder, not a file to write")
    if not os.path.isdir(folder):
        raise UsageError(f"{folder}: no such folder")
    if os.path.exists(path) and not force:
        raise ExistsError(f"{os.fspath(path)}: it exists already (force=True replaces it)")
