"""Answers: JSON documents whose fields are attributes."""

from __future__ import annotations

import copy
import html
import json
import os
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Optional, Union


from . import _qmerge


def _framed(page: str) -> str:
    """A page within a page: its styles and scripts stay its own."""
    return f'<iframe srcdoc="{html.escape(page)}" style="width: 100%; height: 40em; border: 0"></iframe>'


class Record:
    """A JSON object whose fields are attributes. Fields are only added within a `schema_version`."""

    _parts: ClassVar[dict[str, type[Record]]] = {}

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = dict(document)
        for name, value in document.items():
            part = self._parts.get(name)
            if part is not None and value is not None:
                value = [part(item) for item in value] if isinstance(value, list) else part(value)
            setattr(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """The document as dictionaries, lists, strings and numbers."""
        return copy.deepcopy(self._document)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Record) and self._document == other._document

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = (f"{name}={_short(value)}" for name, value in self.__dict__.items() if name != "_document")
        return f"{type(self).__name__}({', '.join(fields)})"


def _short(value: object) -> str:
    return f"<{len(value)} items>" if isinstance(value, list) and len(value) > 4 else repr(value)


class Tool(Record):
    """Name and version of the program."""

    name: str
    version: str


class Model(Record):
    """A model on disk."""

    path: str
    format: str
    bytes: int


class AdapterUse(Record):
    """What became of one adapter's tensors."""

    path: str
    peft_type: str
    weight: float
    sha256: str
    base_model: Optional[str] = None
    tensors: int
    merged: int
    replaced: int
    unused: int
    unused_tensors: list[str] = []
    ignored: list[dict[str, str]] = []


class Summary(Record):
    """Figures over all merged weights."""

    weights_merged: int
    elements: int
    survival: Optional[float]
    """Share of the adapter's delta that is in the output: 1 is kept on average, 0 is gone."""
    noise_to_delta: Optional[float]
    changed_fraction: float
    nonfinite: int
    seconds: float
    bytes_read: int
    bytes_written: int
    peak_rss_bytes: Optional[int]
    bytes_before: Optional[int] = None
    """Bytes of weights that an interrupted run had written, where this one went on."""
    kept_output: Optional[float] = None
    """Mean strength at which the adapter's outputs come out, where layers' inputs are known."""
    noise_output: Optional[float] = None


class Rounding(Record):
    """How codes were chosen."""

    method: str
    reason: Optional[str] = None
    seed: Optional[int] = None
    calibration: Optional[str] = None
    """What the inputs of layers were taken from."""


class Behaviour(Record):
    """How the merged model predicts a text that its calibration did not see, against the base with the adapter kept apart."""

    kl: Optional[float]
    """Mean KL(apart ‖ merged), nats per token; None where the predictions are not finite."""
    kl_base: float
    """Mean KL(apart ‖ base): how much the adapter changes."""
    kl_share: Optional[float]
    """`kl / kl_base`: the share of the adapter's effect that is lost."""
    kl_share_se: Optional[float]
    top1: float
    tokens: int
    text: str


class Verdict(Record):
    """What became of the adapter's effect, and what to do."""

    effect: str
    """"kept", "weakened", "lost", "broken", "noisy", "unknown", "none" or "converted"."""
    kept: Optional[float] = None
    """Share of the adapter's effect that is left, as far as it is known."""
    by: Optional[str] = None
    """What that is a share of: "behaviour", "kept_output" or "survival"."""
    text: str
    advice: Optional[str] = None


class Weight(Record):
    """Figures of one merged or converted weight."""

    name: str
    to: str
    shape: list[int]
    delta_rms: float
    weight_rms: float
    error_rms: float
    survival: Optional[float]
    noise_to_delta: Optional[float]
    changed_fraction: float
    max_abs_error: float
    rounding: str
    kept_output: Optional[float] = None
    noise_output: Optional[float] = None
    residual_kept: Optional[float] = None
    """Share of the rounding error that the residual adapter holds."""

    @property
    def from_(self) -> str:
        """Format it was read from; the document calls it `from`, which is a word of Python."""
        return str(self._document["from"])


class Residual(Record):
    """The adapter that holds what rounding left."""

    path: str
    """Its folder in the output."""
    rank: int
    bytes: int
    weights: int
    kept: Optional[float]
    without: list[dict[str, str]] = []


class TaskVectors(Record):
    """How the differences of tuned models were joined."""

    method: str
    density: Optional[float] = None
    majority_sign: Optional[str] = None
    seed: Optional[int] = None


class Report(Record):
    """What a merge did and what it cost; also in `qmerge-report.json` beside the weights."""

    schema_version: int
    tool: Tool
    date: str
    """When it was done, in UTC: "2026-01-31T12:00:00Z"."""
    command: Optional[str] = None
    """The command line of the program that does the same."""
    base: Model
    adapters: list[AdapterUse]
    task_vectors: Optional[TaskVectors] = None
    """How the differences of tuned models were joined, where there were any."""
    lora_scale: Optional[list[str]] = None
    output: Model
    rounding: Rounding
    summary: Summary
    behaviour: Optional[Behaviour] = None
    """What a run of the merged model showed, where it was run."""
    verdict: Verdict
    residual: Optional[Residual] = None
    weights: list[Weight]
    warnings: list[str]

    _parts = {
        "behaviour": Behaviour,
        "residual": Residual,
        "tool": Tool,
        "base": Model,
        "adapters": AdapterUse,
        "task_vectors": TaskVectors,
        "output": Model,
        "rounding": Rounding,
        "summary": Summary,
        "verdict": Verdict,
        "weights": Weight,
    }

    @classmethod
    def load(cls, path: Union[str, os.PathLike[str]]) -> Report:
        """The report of an earlier merge: of its folder, or from the .json file."""
        if os.path.isdir(path):
            path = os.path.join(path, "qmerge-report.json")
        with open(path, encoding="utf-8") as file:
            return cls(json.load(file))

    def __str__(self) -> str:
        return self.verdict.text

    def _repr_html_(self) -> str:
        """The page of `qmerge report`, as a notebook shows it."""
        return _framed(_qmerge.page(json.dumps(self._document), None))


class Plan(Record):
    """What a merge would do."""

    schema_version: int
    base: Model
    output: Model
    rounding: str
    reason: Optional[str]
    merged: int
    recoded: int
    copied: int
    threads: int
    seconds: float
    memory_bytes: int
    files: list[dict[str, Any]]
    weights: list[dict[str, Any]]
    warnings: list[str]
    parts: list[dict[str, Any]] = []

    _parts = {"base": Model, "output": Model}


class PartDone(Record):
    """A part of a merge that waits to be put together with the others."""

    part: int
    of: int
    folder: str
    steps: int
    bytes_written: int
    seconds: float
    peak_rss_bytes: Optional[int]


class VerifySummary(Record):
    """Figures over all weights that the adapter edits."""

    weights: int
    applied: int
    lost: int
    differing: int
    absent: int
    undecided: int
    survival: Optional[float]
    survival_se: Optional[float]
    noise_to_delta: Optional[float]
    changed_fraction: float


class VerifiedWeight(Record):
    """What one weight of a merge holds of the adapter."""

    name: str
    format: str
    state: str
    survival: Optional[float]
    survival_se: Optional[float]
    noise_to_delta: Optional[float]
    delta_rms: float
    changed_fraction: float
    beyond_fraction: Optional[float]


class Verification(Record):
    """Whether an adapter was applied with its effect kept."""

    schema_version: int
    tool: Tool
    base: Model
    adapters: list[str]
    merged: Model
    answer: str
    """"yes", "no" or "undecided"."""
    text: str
    summary: VerifySummary
    weights: list[VerifiedWeight]
    altered: list[str]
    missing: list[str]
    warnings: list[str]

    _parts = {
        "tool": Tool,
        "base": Model,
        "merged": Model,
        "summary": VerifySummary,
        "weights": VerifiedWeight,
    }

    @property
    def ok(self) -> bool:
        """True if the answer is yes."""
        return self.answer == "yes"

    def __str__(self) -> str:
        return self.text


class ModelFigures(Record):
    """One model's figures on a text; those of a merge whose predictions are not finite are None."""

    name: str
    loss: Optional[float]
    perplexity: Optional[float]
    kl: Optional[float]
    kl_se: Optional[float]
    kl_share: Optional[float]
    """`kl` / `kl` of the base: the share of the adapter's effect that is lost."""
    top1: float
    gain_kept: Optional[float]
    first_divergence: Optional[float]
    tokens_per_second: Optional[float]
    generations: list[str]
    verdict: Optional[Verdict]
    """What is left of the adapter's effect; None for base and apart."""

    _parts = {"verdict": Verdict}


class Comparison(Record):
    """Base, adapter kept apart, merges and other adapters side by side on a text."""

    schema_version: int
    text: str
    context: int
    windows: int
    tokens: int
    prompts: list[str]
    """What was continued, in the order of each model's `generations`."""
    models: list[ModelFigures]

    _parts = {"models": ModelFigures}

    def __getitem__(self, name: str) -> ModelFigures:
        """The figures of "base", of "apart", of a merge by its path, of another adapter as it was given, or of "MERGED + residual-adapter"."""
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)

    def _repr_html_(self) -> str:
        """The page of `qmerge report`, as a notebook shows it."""
        return _framed(_qmerge.page(None, json.dumps(self._document)))


class CutWeight(Record):
    """What a cut kept of one module."""

    module: str
    rank_before: int
    energy: float
    kept: Optional[float]
    """Share of the energy; None where the adapter changes nothing."""
    by_inputs: bool


class Truncation(Record):
    """What was cut of an adapter and what is left."""

    schema_version: int
    tool: Tool
    adapter: str
    output: str
    rank_before: int
    rank: int
    bytes_before: int
    bytes: int
    calibration: Optional[str] = None
    reason: Optional[str] = None
    kept: Optional[float]
    """Share of what the adapter adds to its modules' outputs, where their inputs are known; else of its values."""
    weights: list[CutWeight]
    copied: list[str]
    left_out: list[str]
    advice: str
    warnings: list[str]

    _parts = {"tool": Tool, "weights": CutWeight}


class MadeWeight(Record):
    """A module of a new adapter."""

    module: str
    rank: Optional[int] = None
    energy: Optional[float] = None
    kept: Optional[float] = None


class Made(Record):
    """An adapter that was made of others, or of two models."""

    schema_version: int
    tool: Tool
    output: str
    rank: int
    bytes: int
    kept: Optional[float]
    """Share of what it was made from that its rank holds, squared; None where that is not computed."""
    weights: list[MadeWeight]
    warnings: list[str] = []

    _parts = {"tool": Tool, "weights": MadeWeight}


class Generation(Record):
    """A continuation."""

    text: str
    prompt_tokens: int
    tokens: int
    finish_reason: str
    """"stop" where the model ended it, "max_tokens", or "context" where it is as long as any text that the model was made for."""
    tokens_per_second: Optional[float]
    bytes_per_second: Optional[float]

    def __str__(self) -> str:
        return self.text


class ModelInspection(Record):
    """A model at a glance."""

    schema_version: int
    path: str
    model_type: str
    format: str
    files: int
    tensors: int
    parameters: Optional[int]
    bytes: int
    tied: bool
    groups: list[dict[str, Any]]
    opaque: list[str]
    unsupported: Optional[dict[str, Any]]
    not_run: Optional[str]
    """Why merges of it cannot be measured; None where the model can be run."""
    merged_by_qmerge: bool
    converted_by_qmerge: bool


class AdapterInspection(Record):
    """An adapter at a glance."""

    schema_version: int
    path: str
    writer: str
    peft_type: str
    variants: list[str]
    r: Optional[int]
    lora_alpha: Optional[float]
    refused: Optional[dict[str, Any]]
    base_model: Optional[str]
    tensors: int
    parameters: int
    bytes: int
    targets: list[dict[str, Any]]
    modules_to_save: list[str]


class Calibration(Record):
    """What `qmerge.calibrate` stored."""

    output: str
    taken_from: str
    """The text."""
    bytes: int


class CalibrationInspection(Record):
    """A calibration at a glance."""

    schema_version: int
    path: str
    taken_from: str
    layers: int
    inputs: int
    weights: int
    bytes: int


class Tensor(NamedTuple):
    """A tensor that has values."""

    name: str
    format: str
    shape: tuple[int, ...]
