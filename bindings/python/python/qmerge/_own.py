"""Text that a live model writes itself, where there is none to calibrate on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

from ._errors import UsageError
from ._moments import is_encoder_decoder, torch

OWN, LENGTH = 64, 48
"""Sequences that a model writes itself, and their length, as `qmerge merge` has them."""

LOOKED_AT = 8
"""Sequences that say how much an adapter shows at some strength."""

SHOWS = 0.5
"""Nats per token between the model with its adapter and without, on the text that it writes with it, from which the adapter shows there, as `qmerge merge` has it."""

LEAST, UNSEEN, MOST = 1.5, 2.0, 8.0
"""How many times as strong an adapter is made: at least, at most where no stronger one was looked at, and at most."""

JUDGED_FROM = 12
"""Tokens at the beginning of a sequence, which are like any text."""


def _embedding_of(model: Any) -> Any:
    """The table of token embeddings; None of a model without one, as of images."""
    try:
        embed = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return embed if getattr(getattr(embed, "weight", None), "ndim", 0) == 2 else None


def device_of(model: Any) -> Any:
    weight = getattr(_embedding_of(model), "weight", None)
    return next(model.parameters()).device if weight is None or weight.device.type == "meta" else weight.device


def can_write(model: Any) -> bool:
    """True of a decoder that writes text from tokens alone."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not callable(getattr(inner, "generate", None)) or is_encoder_decoder(inner):
        return False
    says = getattr(inner, "can_generate", None)
    return (says is None or bool(says())) and _embedding_of(inner) is not None


class OwnText:
    """What the model writes behind `begin`, or else behind random first tokens. Where a LoRA hardly shows in the first few sequences, the next few are written again with a stronger
    one, and all others with one that is as strong as these say it has to be."""

    sequences: list[list[int]]
    strength: float
    """How many times as strong as it is the adapter was at most."""

    def __init__(self, model: Any, begin: list[int], seed: int) -> None:
        if not can_write(model):
            raise UsageError("the model writes no text by itself: pass texts")
        self._model, self._begin, self._seed, self.strength = model, begin, seed, 1.0
        self.sequences = self._write(OWN, 1.0) or []
        first = self.sequences[:LOOKED_AT]
        nats = self._nats(first, 1.0)
        second = _second(nats)
        written = self._write(LOOKED_AT, second) if second > 1.0 else None
        if not written:
            return
        third = _third(nats, second, self._nats(written, second))
        # Of one that turned out to be too strong nothing is kept.
        stronger = written if third >= second else []
        rest = OWN - len(first) - len(stronger)
        more = self._write(rest, third) if third > 1.0 else None
        kept = more or self.sequences[-rest:]
        self.sequences = [*first, *stronger, *kept]
        self.strength = max(third if more else 1.0, second if stronger else 1.0)

    @property
    def with_adapter(self) -> str:
        """In words that follow a seed."""
        return "" if self.strength == 1.0 else f", with the adapter up to {self.strength:g} times as strong, so that it shows more"

    def _write(self, count: int, strength: float) -> Optional[list[list[int]]]:
        """None where a stronger adapter overflows."""
        lib, model = torch(), self._model
        vocab, place = _embedding_of(model).weight.shape[0], device_of(model)
        with lib.random.fork_rng(), lib.no_grad(), _so_strong(model, strength):
            lib.manual_seed(self._seed if strength == 1.0 else (self._seed + count) % 2**63)
            first = lib.tensor([self._begin] * count) if self._begin else lib.randint(0, vocab, (count, 1))
            first = first.to(place)
            more = LENGTH - first.shape[1]
            # By the model's own probabilities, whatever its generation_config says.
            written = model.generate(
                input_ids=first,
                attention_mask=lib.ones_like(first),
                do_sample=True,
                num_beams=1,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                typical_p=1.0,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                min_new_tokens=more,
                max_new_tokens=more,
                pad_token_id=0,
                # Drawing from what is not finite ends the process on some devices.
                remove_invalid_values=strength != 1.0,
            )
            if strength != 1.0 and not all(bool(lib.isfinite(self._logits(row)).all()) for row in written):
                return None
        return [list(map(int, row)) for row in written.tolist()]

    def _logits(self, row: Any) -> Any:
        return self._model(input_ids=row.reshape(1, -1)).logits[0]

    def _nats(self, sequences: list[list[int]], strength: float) -> float:
        """By how many nats per token the adapter, so strong, shows in these sequences, which the model wrote with it; 0 of one whose strength is no factor."""
        lib, model = torch(), self._model
        if not _layers(model):
            return 0.0
        start, found = len(self._begin) + JUDGED_FROM, []
        with lib.no_grad():
            for sequence in sequences:
                row = lib.tensor(sequence, device=device_of(model))
                with _so_strong(model, strength):
                    apart = self._logits(row)[start:].float().log_softmax(-1)
                with _so_strong(model, 0.0):
                    base = self._logits(row)[start:].float().log_softmax(-1)
                found.append(float((apart.exp() * (apart - base)).sum(-1).mean()))
        return sum(found) / len(found)


def _layers(model: Any) -> list[Any]:
    """The layers that a LoRA changes."""
    return [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "scale_layer")]


@contextmanager
def _so_strong(model: Any, strength: float) -> Iterator[None]:
    """While it lasts, a LoRA is so many times as strong."""
    layers = [] if strength == 1.0 else _layers(model)
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scale_layer(strength)
        yield
    finally:
        for layer, scaling in zip(layers, before):
            layer.scaling.update(scaling)


def _second(nats: float) -> float:
    """The strength to look at next, where an adapter as it is shows by so many nats: 1 where that is enough, and where it does nothing."""
    return _halves(min(math.sqrt(SHOWS / nats), UNSEEN)) if nats > 1e-6 and math.isfinite(nats) else 1.0


def _third(first: float, strength: float, nats: float) -> float:
    """The strength at which an adapter shows, from what it is like at two: nats grow with the square of the strength, or faster."""
    if not math.isfinite(nats):
        return 1.0
    nats = max(nats, 1e-9)
    power = max(math.log(nats / first) / math.log(strength), 2.0)
    return _halves(min(strength * (SHOWS / nats) ** (1 / power), MOST))


def _halves(strength: float) -> float:
    """In steps of a half; as it is where that is below the least."""
    strength = math.floor(2 * strength + 0.5) / 2
    return strength if strength >= LEAST else 1.0
