"""Calibration through torch: what a merge needs to know of a model's layers, from the live model itself.

>>> qmerge.torch.calibrate(model, texts, "calibration.safetensors", tokenizer=tokenizer)
>>> qmerge.merge("base", "lora", "merged", calibration="calibration.safetensors")

`qmerge calibrate` needs no torch, and runs the families that it knows. This takes the same from any model that torch runs. In training it costs no run
at all: `MomentsCallback` looks at the last steps, and `merge` finds its file beside the adapter.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

from ._command import Path
from ._errors import UsageError
from ._moments import SIZES, Moments, features, is_encoder_decoder, marks, refuse_existing, targets, torch, write
from ._own import OwnText, can_write, device_of
from ._results import Calibration

__all__ = ["FILE_NAME", "MomentsCallback", "calibrate"]

FILE_NAME = "qmerge_calibration.safetensors"
"""The file that `merge` looks for in an adapter's folder."""

Text = Union[str, Sequence[int], "dict[str, Any]"]
"""A text, a list of token ids, or what the model is called with."""

WINDOW = 256
"""Most tokens of a sequence, as `qmerge calibrate` cuts a text."""


def calibrate(
    model: Any,
    texts: Optional[Iterable[Text]],
    out: Path,
    *,
    tokenizer: Any = None,
    window: int = WINDOW,
    max_sequences: int = 256,
    dtype: Literal["f32", "bf16"] = "f32",
    device: Optional[str] = None,
    max_bytes: Optional[int] = None,
    seed: int = 0,
    force: bool = False,
) -> Calibration:
    """Runs a live model, and stores the second moments of what its linear layers are given, for `merge(..., calibration=out)`.

    Those that an adapter changes where the model is a `PeftModel`, else all but the output embedding. Sums are taken in float32, where the layer's inputs are; the
    model's own numbers do not change. Of what attention's queries, keys and values are computed from, a token counts half by the attention that is paid to it (the
    squares of its shares), wherever attention runs through transformers' interface, and is not compiled; elsewhere all count alike. Modules that a checkpoint stores as
    one stack, as experts may be, are left out, and are rounded without data.

    Args:
        model: any torch module that is called as transformers' models are.
        texts: like what the adapter is for: strings, lists of token ids, or dictionaries that the model is called with (padding is left out by their
            `attention_mask`). None: the model writes 64 sequences itself, at temperature 1, with a LoRA that hardly shows in these
            made stronger while it writes.
        out: the `.safetensors` file to write.
        tokenizer: for strings; by default that of the folder or hub id that the model was loaded from. Each sequence begins as it begins texts.
        window: most tokens of a sequence: longer strings are cut into several.
        max_sequences: most sequences; of more, this many are taken, spread evenly.
        dtype: element type of the file: "f32", or "bf16" for half the size.
        device: where sums are kept, by default beside the layer's inputs: a (features, features) matrix of float32 for each distinct input.
        max_bytes: most bytes of sums at a time: where all take more, the model is run several times.
        seed: seed of the text that the model writes.
        force: replace an existing file.
    """
    refuse_existing(out, force)
    if dtype not in SIZES:
        raise UsageError(f"dtype is {dtype!r}: it is one of {', '.join(SIZES)}")
    lib = torch()
    modules = targets(model)
    # Layers may be out of training while the model is in it.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        if texts is None:
            own = OwnText(model, _beginning(model, tokenizer) if can_write(model) else [], seed)
            sequences: list[Any] = own.sequences
            source = f"that the model wrote (seed {seed}{own.with_adapter})"
        else:
            sequences = _spread(list(_sequences(model, texts, tokenizer, window)), max_sequences)
            source = f"in {len(sequences)} sequences"
        if not sequences:
            raise UsageError("no text to calibrate on")

        def run(only: Optional[set[str]]) -> Moments:
            moments = Moments(model, modules, device, only=only)
            try:
                with lib.no_grad():
                    for sequence in sequences:
                        _call(model, sequence)
            finally:
                moments.remove()
            return moments

        # Which layers share an input is known once the model has run; were none shared, this much would be needed.
        most = sum(4 * (features(module) or 0) ** 2 for module in modules.values())
        at_once = max_bytes is None or most <= max_bytes
        whole = run(None if at_once else set())
        inputs = [found for found in whole.inputs.values() if found.tokens]
        if not inputs:
            raise UsageError("no linear layer of the model was called: its code does not go through the modules")

        def sums() -> Iterator[Any]:
            if max_bytes is None or at_once:
                for found in inputs:
                    yield found.sum
                    found.sum = None
                return
            for some in _groups(inputs, max_bytes):
                taken = run({found.names[0] for found in some}).inputs
                for found in some:
                    yield taken[found.names[0]].sum

        taken_from = f"{whole.tokens} tokens {source}, run in torch"
        size = write(out, inputs, sums(), taken_from, marks(model, together=True), dtype)
    finally:
        for module, was_training in modes:
            module.training = was_training
    return Calibration({"output": os.fspath(out), "taken_from": taken_from, "bytes": size})


def _groups(inputs: Sequence[Any], max_bytes: int) -> Iterator[list[Any]]:
    """Inputs in their order, as many at a time as fit."""
    some: list[Any] = []
    for found in inputs:
        if some and 4 * sum(one.features**2 for one in [*some, found]) > max_bytes:
            yield some
            some = []
        some.append(found)
    yield some


def _spread(sequences: list[Any], most: int) -> list[Any]:
    count = min(most, len(sequences))
    return [sequences[at * len(sequences) // count] for at in range(count)]


def _sequences(model: Any, texts: Iterable[Text], tokenizer: Any, window: int) -> Iterator[Any]:
    """Token ids, or dictionaries as they are."""
    if isinstance(texts, (str, bytes, os.PathLike, dict)):
        raise UsageError("texts are a list: of strings, of token ids, or of dictionaries")
    for text in texts:
        if isinstance(text, str):
            tokenizer = tokenizer or _tokenizer_of(model)
            yield from _windows(tokenizer, text, window)
        elif hasattr(text, "items"):
            yield text
        else:
            ids = [int(token) for token in text]
            if ids:
                yield ids


def _tokenizer_of(model: Any) -> Any:
    place = getattr(getattr(model, "config", None), "_name_or_path", "") or getattr(model, "name_or_path", "")
    if not place:
        raise UsageError("the model does not say where its tokenizer is: pass tokenizer=")
    return importlib.import_module("transformers").AutoTokenizer.from_pretrained(place)


def _split(tokenizer: Any, text: str) -> tuple[list[int], list[int], list[int]]:
    """The tokens of a text, and those that the tokenizer puts before and behind it."""
    whole = list(tokenizer(text)["input_ids"])
    body = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    starts = range(len(whole) - len(body) + 1)
    start = next((at for at in starts if whole[at : at + len(body)] == body), 0)
    return whole[:start], body, whole[start + len(body) :]


def _windows(tokenizer: Any, text: str, window: int) -> Iterator[list[int]]:
    """A text in pieces, each within the tokens that the tokenizer puts around one."""
    before, body, after = _split(tokenizer, text)
    room = max(1, window - len(before) - len(after))
    for at in range(0, len(body), room):
        yield [*before, *body[at : at + room], *after]


def _call(model: Any, sequence: Any) -> None:
    lib = torch()
    place = device_of(model)
    if hasattr(sequence, "items"):
        moved = {name: value.to(place) if isinstance(value, lib.Tensor) else value for name, value in sequence.items()}
        # An encoder-decoder makes the decoder's input of them; of others they would only cost a loss.
        if not is_encoder_decoder(model):
            moved.pop("labels", None)
        model(**moved)
    else:
        model(input_ids=lib.tensor([sequence], device=place))


def _beginning(model: Any, tokenizer: Any) -> list[int]:
    """What the tokenizer begins texts with; nothing where there is none to ask."""
    try:
        return _split(tokenizer or _tokenizer_of(model), "a")[0]
    except Exception:  # noqa: BLE001 (a tokenizer that cannot be had is no reason not to write)
        return []


class _MomentsCallback:
    """Collects moments over the last steps of training, on the very text that an adapter learns from, and stores them beside the adapter.

    >>> Trainer(model, args, train_dataset=data, callbacks=[qmerge.torch.MomentsCallback()])

    A `transformers.TrainerCallback`. Training computes what it would without it: hooks are there for the last steps only, and look at what passes. Evaluation, text that is
    generated in between, and passes that checkpointing computes again are not counted. With several processes each sees its share, and the first stores its own.
    Sums take 4 · features² bytes for each distinct input of the adapter's layers (30 GiB for all linear layers of 8 billion parameters): `device="cpu"` keeps them out
    of a GPU. Where there is no memory for one of them, or no room for the file, there are no moments, with a warning, and training goes on.

    Args:
        steps: optimizer steps at the end of training to look at.
        dtype: element type of the file.
        device: where sums are kept, by default beside each layer's inputs; "cpu" leaves a GPU's memory alone, and takes longer.
    """

    def __init__(
        self, steps: int = 8, dtype: Literal["f32", "bf16"] = "bf16", device: Optional[str] = None
    ) -> None:
        self.steps, self.dtype, self.device = steps, dtype, device
        self._moments: Optional[Moments] = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # What a training that was interrupted left.
        if self._moments is not None:
            self._moments.remove()
            self._moments = None

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self._moments is None and model is not None and state.global_step >= state.max_steps - self.steps:
            lib = torch()
            learns = lambda: bool(model.training and lib.is_grad_enabled())
            self._moments = Moments(model, targets(model), self.device, count=learns, forgives=True)

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._store(os.path.join(args.output_dir, f"checkpoint-{state.global_step}"), state, model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self._moments is None:
            warnings.warn(
                f"training ended before its last {self.steps} steps were reached, so no moments were taken", stacklevel=2
            )
            return
        self._moments.remove()
        if self._moments.tokens == 0 and not self._moments.failed:
            warnings.warn(
                "no moments were taken: in training the adapter's layers are not called as modules, as where they are compiled or fused",
                stacklevel=2,
            )
        self._store(args.output_dir, state, model)
        self._moments = None

    def _store(self, folder: str, state: Any, model: Any) -> None:
        moments = self._moments
        if moments is None or not moments.tokens or not state.is_world_process_zero:
            return
        inputs = [found for found in moments.inputs.values() if found.tokens]
        about = f"{moments.tokens} tokens collected in training"
        try:
            os.makedirs(folder, exist_ok=True)
            known_by = marks(model, together=False)
            write(os.path.join(folder, FILE_NAME), inputs, (found.sum for found in inputs), about, known_by, self.dtype)
        except (UsageError, OSError, RuntimeError) as error:
            # A training is not to end for it.
            warnings.warn(f"moments are not stored: {error}", stacklevel=2)


if TYPE_CHECKING:
    MomentsCallback = _MomentsCallback
else:

    def __getattr__(name: str) -> Any:
        if name == "MomentsCallback":
            return _callback()
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@lru_cache(maxsize=1)
def _callback() -> Any:
    """The class, made where transformers is there to make it of."""
    base = importlib.import_module("transformers").TrainerCallback
    contents = {"__module__": __name__, "__doc__": _MomentsCallback.__doc__}
    return type("MomentsCallback", (_MomentsCallback, base), contents)
