"""Text that a live model writes itself, where there is none to calibrate on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    """What the model writes behind `begin`, or else behind random first tokens. The first few sequences are written with the adapter as it is; where it hardly shows in them, the next few
    with a stronger one, and all others with one that is as strong as these say it has to be."""

    sequences: list[list[int]]
    strength: float
    """How many times as strong as it is the adapter was at most."""

    def __init__(self, model: Any, begin: list[int], seed: int) -> None:
        if not can_write(model):
            raise UsageError("the model writes no text by itself: pass texts")
        self._model, self._begin, self._seed = model, begin, seed
        self.sequences, self.strength = [], 1.0
        first = self._write(LOOKED_AT, 1.0)
        self.sequences += first
        nats = self._nats(first, 1.0) if _layers(model) else 0.0
        strength = _second(nats)
        if strength > 1.0:
            written = self._write(LOOKED_AT, strength)
            more = _third(nats, strength, self._nats(written, strength))
            # Of one that turned out to be too strong nothing is kept.
            if more >= strength:
                self.sequences += written
            strength = more
        self.sequences += self._write(OWN - len(self.sequences), strength)
        self.strength = strength

    @property
    def with_adapter(self) -> str:
        """In words that follow a seed."""
        return "" if self.strength == 1.0 else f", with the adapter up to {self.strength:g} times as strong, so that it shows"

    def _write(self, count: int, strength: float) -> list[list[int]]:
        lib, model = torch(), self._model
        vocab, place = _embedding_of(model).weight.shape[0], device_of(model)
        with lib.random.fork_rng(), lib.no_grad(), _so_strong(model, strength):
            lib.manual_seed(self._seed * OWN + len(self.sequences))
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
            )
        return [list(map(int, row)) for row in written.tolist()]

    def _nats(self, sequences: list[list[int]], strength: float) -> float:
        """By how many nats per token the adapter, so strong, shows in these sequences, which the model wrote with it."""
        lib, model = torch(), self._model
        found = []
        with lib.no_grad():
            for sequence in sequences:
                ids = lib.tensor([sequence], device=device_of(model))
                with _so_strong(model, strength):
                    apart = model(input_ids=ids).logits[0, JUDGED_FROM:].float().log_softmax(-1)
                with model.disable_adapter():
                    base = model(input_ids=ids).logits[0, JUDGED_FROM:].float().log_softmax(-1)
                found.append(float((apart.exp() * (apart - base)).sum(-1).mean()))
        return sum(found) / len(found)


def _layers(model: Any) -> list[Any]:
    """The layers that a LoRA changes; none of an adapter of another kind, whose strength is no factor."""
    peft_config = getattr(model, "peft_config", {})
    if not hasattr(model, "disable_adapter") or any(getattr(own, "peft_type", None) != "LORA" for own in peft_config.values()):
        return []
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
