"""The functions. Options that are None take the program's default; `qmerge merge --help` says what each does."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

from . import _qmerge
from ._command import Adapters, Path, adapters, flags, maps, run, scales, yes_or_no
from ._errors import low_survival
from ._progress import Watcher
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

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

Format = Literal[
    "nf4", "fp4", "int8", "fp8", "ct-int4", "ct-int8", "ct-nvfp4", "ct-mxfp4", "gptq", "mlx", "hqq", "f32", "f16", "bf16",
    # GGUF, as "f32", "f16" and "bf16" are where the output's name ends in .gguf.
    "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k",
]
Target = Union[Format, Literal["same"]]
Rounding = Literal["auto", "adapter", "descent", "gptq", "original", "feedback", "stochastic", "keep", "nearest"]
Tokenizer = Literal["adapter", "base"]
Measure = Literal["auto", "always", "never"]
Storage = Literal["uint8", "float16", "bfloat16", "float32"]

TunedMethod = Literal["linear", "magnitude_prune", "ties", "dare_linear", "dare_ties"]

Maps = Union[Mapping[str, str], Sequence[str], None]
Scales = Optional[Mapping[str, float]]


def merge(
    base: Path,
    adapter: Optional[Adapters],
    output: Path,
    *,
    tuned: Optional[Adapters] = None,
    tuned_method: Optional[TunedMethod] = None,
    density: Optional[float] = None,
    majority_sign: Optional[Literal["total", "frequency"]] = None,
    tuned_seed: Optional[int] = None,
    to: Optional[Target] = None,
    rounding: Optional[Rounding] = None,
    calibrate: Optional[Path] = None,
    calibration_tokens: Optional[int] = None,
    calibration_time: Optional[str] = None,
    calibration: Optional[Path] = None,
    imatrix: Optional[Path] = None,
    original: Optional[Path] = None,
    fast: bool = False,
    no_run: bool = False,
    seed: Optional[int] = None,
    residual_rank: Optional[int] = None,
    promote: Optional[str] = None,
    budget: Union[float, str, None] = None,
    measure: Optional[Measure] = None,
    min_kept: Optional[float] = None,
    min_survival: Optional[float] = None,
    tokenizer: Optional[Tokenizer] = None,
    map: Maps = None,
    lora_scale: Scales = None,
    allow_unused: bool = False,
    base_is_residual: bool = False,
    peft_bugs: bool = False,
    double_quant: Optional[bool] = None,
    block_size: Optional[int] = None,
    bits: Optional[int] = None,
    quant_storage: Optional[Storage] = None,
    torch_threads: Optional[int] = None,
    force: bool = False,
    resume: bool = False,
    threads: Optional[int] = None,
    max_memory: Union[int, str, None] = None,
    scratch: Optional[Path] = None,
    report: Optional[Path] = None,
    adapter_names: Optional[Sequence[str]] = None,
    safe_merge: bool = True,
    progress: Watcher = None,
    progressbar: Optional[bool] = None,
) -> Report:
    """Merges one or more adapters into a base model and writes the output, whole or not at all.

    Args:
        base: folder, `.safetensors` or `.gguf` file, hub id, or address such as "s3://bucket/folder".
        adapter: one of these, a `(path, weight)` pair, a list of either, or a dictionary of paths and weights.
        output: folder, `.safetensors` or `.gguf` file, or address of a folder in a bucket.
        tuned: models that were trained whole from the base, given as adapters are: what each differs from the base by is merged, times its weight. `adapter` may be None then.
        tuned_method: how their differences are joined: "linear" (the default: their weighted sum), "magnitude_prune", "ties", "dare_linear" or "dare_ties".
        density, majority_sign, tuned_seed: share of its values that each keeps, what elects a sign ("total" or "frequency"), and the seed of what is drawn, for the methods that take them.
        to: format of the output: "same" (the default), "f32", "f16", "bf16", "nf4", "fp4", "int8", "fp8", "ct-int4", "ct-int8", "ct-nvfp4", "ct-mxfp4", "gptq", "mlx", "hqq", or a file type of llama.cpp such as "q4_k_m".
        rounding: how codes are chosen: "auto" (the default: by what comes out of the layers where that is known), "nearest" (PEFT's bytes), or another method's name.
        calibrate: a text file like the model's task, to see what its layers are given (default: text that the model writes itself).
        calibration_tokens: how many tokens to calibrate on (default: 3072 that the model writes itself, or 6144 of a text).
        calibration_time: as many tokens as take about so long on one thread, like "20m"; computed from the model's size, so the same on every machine.
        calibration: a file, or a folder of files that add up, that `calibrate` or `qmerge.torch.calibrate` stored for this base: the model is run to measure only, with `measure="never"` not at all. One that `qmerge.torch.MomentsCallback` put beside the adapter is found by itself.
        imatrix: llama.cpp's importance matrix of this model: it knows each input's size alone, not how inputs go together.
        original: the 16-bit checkpoint that the base was quantized from: where nothing is calibrated it is rounded with the delta, in place of the base.
        fast: into the base's own format: round by few tokens that the model writes, in few passes, and do not measure.
        no_run: with `fast`, do not run the model at all, and round by what the adapter itself reads of its inputs.
        seed: seed of everything that is drawn.
        residual_rank: also write what rounding leaves as a LoRA of this rank, into the output's folder `residual-adapter`.
        promote: into GGUF: give the weights that lose most a wider type, "auto" (the next of each weight's own) or one of GGUF's such as "q8_0", and those whose own cannot be written.
        budget: how much larger that may make the output, as a share of its bytes, 0.02 or "2%" (the default).
        measure: when the merged model is run, on text that the calibration did not see, to measure what is left of the adapter: "auto" (the default: where the merge is calibrated and the model can be run), "always" or "never".
        min_kept: raise `SurvivalError` if a smaller share of the adapter's effect on what the model predicts is kept. It is measured whatever the method. The output is written all the same.
        min_survival: the same by the best that is known: by what the model predicts where it is measured, else by layers' outputs, else by the delta in the weights. In `verify` it is the delta in the weights alone.
        tokenizer: whose tokenizer the output takes, "adapter" or "base".
        map: translations of the adapter's names: regular expressions and what they become.
        lora_scale: factors by regular expressions that are found in a module's path, on what all adapters do there.
        allow_unused: leave out adapter tensors that match nothing.
        base_is_residual: the base already is the residual model of a PiSSA, OLoRA, CorDA, LoRA-GA or LoftQ initialisation.
        peft_bugs: write what PEFT writes where its merge contradicts its own forward pass.
        bits, block_size: bits of a code and elements per scale of what is made anew.
        double_quant, quant_storage, torch_threads: how NF4 and FP4 are stored.
        force: replace an existing output.
        resume: go on where a merge with the same arguments was interrupted.
        threads: worker threads. The output does not depend on it.
        max_memory: most memory to use, in bytes or like "2G".
        scratch: folder of this machine, or "DIR=SIZE", that holds up to so much of what is read more than once from an address.
        report: also write the report to this `.json` or `.html` file.
        adapter_names: PEFT's names of the adapters to take from one folder that `save_pretrained` wrote.
        safe_merge: checks for NaN and infinity are always on; False warns of that and changes nothing.
        progress: a function that is told how far the work is (`qmerge.Progress`: share, phase, layers), or True for a bar. What it raises stops the merge.
        progressbar: PEFT's name for `progress=True`.

    Raises:
        Error: by kind, see `qmerge.Error`'s subclasses.
        KeyboardInterrupt: on Ctrl-C. There is no output then, and `resume=True` goes on.
    """
    if not safe_merge:
        warnings.warn("qmerge checks every value at no cost: safe_merge=False changes nothing", stacklevel=2)
    options = _merge_options(locals())
    return _held(run("merge", options, progress or bool(progressbar)), output, min_kept, min_survival)


def _held(
    answer: tuple[int, dict[str, Any]], output: Path, min_kept: Optional[float], min_survival: Optional[float]
) -> Report:
    """The report of a merge. Raises if less is left than was asked for."""
    status, document = answer
    done = Report(document)
    if status == 1:
        verdict = done.verdict
        measured = verdict.kept if verdict.by == "behaviour" else None
        is_kept = min_kept is not None and (measured is None or measured < min_kept)
        option, least = ("min_kept", min_kept) if is_kept else ("min_survival", min_survival)
        raise low_survival(os.fspath(output), option, least, done)
    return done


def merge_part(
    base: Path, adapter: Optional[Adapters], output: Path, part: str, *, progress: Watcher = None, **options: Any
) -> PartDone:
    """Merges one part of an output, in a process of its own: part "2/4" is the second of four. `finish` puts all parts together.

    Args:
        options: as `merge` takes them; all parts, and `finish`, are given the same. `resume=True` goes on where this part was interrupted.
    """
    given = _with_defaults(options, base=base, adapter=adapter, output=output, part=part)
    return PartDone(run("merge", _merge_options(given), progress)[1])


def finish(base: Path, adapter: Optional[Adapters], output: Path, *, progress: Watcher = None, **options: Any) -> Report:
    """Puts the parts of a merge together that `merge_part` wrote: the output is what `merge` with the same arguments writes, byte for byte."""
    given = _with_defaults(options, base=base, adapter=adapter, output=output)
    return _held(run("finish", _merge_options(given), progress), output, options.get("min_kept"), options.get("min_survival"))


def plan(
    base: Path,
    adapter: Optional[Adapters],
    output: Path,
    *,
    tuned: Optional[Adapters] = None,
    tuned_method: Optional[TunedMethod] = None,
    density: Optional[float] = None,
    majority_sign: Optional[Literal["total", "frequency"]] = None,
    tuned_seed: Optional[int] = None,
    to: Optional[Target] = None,
    rounding: Optional[Rounding] = None,
    calibrate: Optional[Path] = None,
    calibration_tokens: Optional[int] = None,
    calibration_time: Optional[str] = None,
    calibration: Optional[Path] = None,
    imatrix: Optional[Path] = None,
    original: Optional[Path] = None,
    fast: bool = False,
    no_run: bool = False,
    seed: Optional[int] = None,
    residual_rank: Optional[int] = None,
    promote: Optional[str] = None,
    budget: Union[float, str, None] = None,
    tokenizer: Optional[Tokenizer] = None,
    map: Maps = None,
    lora_scale: Scales = None,
    allow_unused: bool = False,
    base_is_residual: bool = False,
    peft_bugs: bool = False,
    double_quant: Optional[bool] = None,
    block_size: Optional[int] = None,
    bits: Optional[int] = None,
    quant_storage: Optional[Storage] = None,
    torch_threads: Optional[int] = None,
    force: bool = False,
    threads: Optional[int] = None,
    max_memory: Union[int, str, None] = None,
    scratch: Optional[Path] = None,
    adapter_names: Optional[Sequence[str]] = None,
    parts: Optional[int] = None,
) -> Plan:
    """What `merge` with these arguments would do, and each of so many parts of it; nothing is written."""
    return Plan(run("plan", _merge_options(locals()), None)[1])


def convert(
    base: Path,
    output: Path,
    *,
    to: Format,
    imatrix: Optional[Path] = None,
    double_quant: Optional[bool] = None,
    block_size: Optional[int] = None,
    bits: Optional[int] = None,
    quant_storage: Optional[Storage] = None,
    torch_threads: Optional[int] = None,
    force: bool = False,
    resume: bool = False,
    threads: Optional[int] = None,
    max_memory: Union[int, str, None] = None,
    scratch: Optional[Path] = None,
    report: Optional[Path] = None,
    progress: Watcher = None,
) -> Report:
    """Changes the format of a model, without an adapter; into GGUF with llama.cpp's importance matrix, where one is given."""
    options = flags(
        base=base,
        output=output,
        to=to,
        imatrix=imatrix,
        double_quant=yes_or_no(double_quant),
        block_size=block_size,
        bits=bits,
        quant_storage=quant_storage,
        torch_threads=torch_threads,
        force=force,
        resume=resume,
        threads=threads,
        max_memory=max_memory,
        scratch=scratch,
        report=report,
    )
    return Report(run("convert", options, progress)[1])


def inspect(path: Path) -> Union[ModelInspection, AdapterInspection, CalibrationInspection]:
    """What is in a model, an adapter or a calibration, without reading its numbers."""
    _, document = run("inspect", ["--", os.fspath(path)], None)
    if document["kind"] == "adapter":
        return AdapterInspection(document)
    if document["kind"] == "calibration":
        return CalibrationInspection(document)
    return ModelInspection(document)


def verify(
    base: Path,
    adapter: Optional[Adapters],
    merged: Path,
    *,
    min_survival: Optional[float] = None,
    map: Maps = None,
    tuned: Optional[Adapters] = None,
    tuned_method: Optional[TunedMethod] = None,
    density: Optional[float] = None,
    majority_sign: Optional[Literal["total", "frequency"]] = None,
    tuned_seed: Optional[int] = None,
    lora_scale: Scales = None,
    allow_unused: bool = False,
    base_is_residual: bool = False,
    peft_bugs: bool = False,
    threads: Optional[int] = None,
    adapter_names: Optional[Sequence[str]] = None,
    progress: Watcher = None,
) -> Verification:
    """Tells whether an adapter was applied, to which tensors, and with what loss; also for merges that other tools made.

    Args:
        min_survival: share of the delta in the weights from which it counts as kept (0.5).
        progress: a function that is told how far the work is (`qmerge.Progress`: share, phase, layers), or True for a bar.
    """
    options = flags(
        base=base,
        adapter=adapters(adapter or (), adapter_names),
        tuned=adapters(tuned or ()),
        tuned_method=tuned_method,
        density=density,
        majority_sign=majority_sign,
        tuned_seed=tuned_seed,
        merged=merged,
        min_survival=min_survival,
        map=maps(map),
        lora_scale=scales(lora_scale),
        allow_unused=allow_unused,
        base_is_residual=base_is_residual,
        peft_bugs=peft_bugs,
        threads=threads,
    )
    return Verification(run("verify", options, progress)[1])


def compare(
    base: Path,
    adapter: Optional[Adapters],
    merged: Union[Path, Sequence[Path]] = (),
    *,
    text: Path,
    beside: Adapters = (),
    prompts: Optional[Path] = None,
    context: Optional[int] = None,
    windows: Optional[int] = None,
    continuation: Optional[int] = None,
    map: Maps = None,
    tuned: Optional[Adapters] = None,
    tuned_method: Optional[TunedMethod] = None,
    density: Optional[float] = None,
    majority_sign: Optional[Literal["total", "frequency"]] = None,
    tuned_seed: Optional[int] = None,
    lora_scale: Scales = None,
    allow_unused: bool = False,
    base_is_residual: bool = False,
    peft_bugs: bool = False,
    threads: Optional[int] = None,
    max_memory: Union[int, str, None] = None,
    scratch: Optional[Path] = None,
    report: Optional[Path] = None,
    adapter_names: Optional[Sequence[str]] = None,
    progress: Watcher = None,
) -> Comparison:
    """Runs the base, the base with the adapter kept apart, merges, and other adapters kept apart, on a text.

    Args:
        text: UTF-8 file to predict.
        beside: other adapters to compare, each kept apart beside the same base, as one that was cut.
        prompts: file of prompts to continue greedily, one per line.
        context: tokens of a window (512).
        windows: most windows (all).
        continuation: tokens of a continuation (64); 0 for none.
        progress: a function that is told how far the work is (`qmerge.Progress`: share, phase, layers), or True for a bar.
    """
    options = flags(
        base=base,
        adapter=adapters(adapter or (), adapter_names),
        tuned=adapters(tuned or ()),
        tuned_method=tuned_method,
        density=density,
        majority_sign=majority_sign,
        tuned_seed=tuned_seed,
        merged=[merged] if isinstance(merged, (str, os.PathLike)) else list(merged),
        beside=adapters(beside),
        text=text,
        prompts=prompts,
        context=context,
        windows=windows,
        continuation=continuation,
        map=maps(map),
        lora_scale=scales(lora_scale),
        allow_unused=allow_unused,
        base_is_residual=base_is_residual,
        peft_bugs=peft_bugs,
        threads=threads,
        max_memory=max_memory,
        scratch=scratch,
        report=report,
    )
    return Comparison(run("compare", options, progress)[1])


def calibrate(
    base: Path,
    output: Path,
    adapter: Adapters = (),
    *,
    text: Optional[Path] = None,
    add: Union[Path, Sequence[Path]] = (),
    calibration_tokens: Optional[int] = None,
    calibration_time: Optional[str] = None,
    dtype: Optional[Literal["f32", "bf16"]] = None,
    seed: Optional[int] = None,
    map: Maps = None,
    lora_scale: Scales = None,
    allow_unused: bool = False,
    base_is_residual: bool = False,
    peft_bugs: bool = False,
    force: bool = False,
    threads: Optional[int] = None,
    max_memory: Union[int, str, None] = None,
    scratch: Optional[Path] = None,
    adapter_names: Optional[Sequence[str]] = None,
    progress: Watcher = None,
) -> Calibration:
    """Stores what the layers of a base are given, to merge many adapters into it without running it again: `merge(..., calibration=output)`.

    Args:
        output: a `.safetensors` file.
        adapter: adapters that the model runs with, like those to be merged.
        text: a text file like the model's task (default: text that the model writes itself).
        add: files that were stored before, or folders of them, instead of a run: their moments are added up, each by its number of tokens.
        calibration_tokens: how many tokens to calibrate on (default: 3072 that the model writes itself, or 6144 of a text).
        calibration_time: as many tokens as take about so long on one thread, like "20m"; computed from the model's size, so the same on every machine.
        dtype: element type of the file: "f32", or "bf16" for half the size.
    """
    options = flags(
        base=base,
        output=output,
        adapter=adapters(adapter, adapter_names),
        text=text,
        add=[add] if isinstance(add, (str, os.PathLike)) else list(add),
        calibration_tokens=calibration_tokens,
        calibration_time=calibration_time,
        dtype=dtype,
        seed=seed,
        map=maps(map),
        lora_scale=scales(lora_scale),
        allow_unused=allow_unused,
        base_is_residual=base_is_residual,
        peft_bugs=peft_bugs,
        force=force,
        threads=threads,
        max_memory=max_memory,
        scratch=scratch,
    )
    return Calibration(run("calibrate", options, progress)[1])


def report(documents: Union[Path, Sequence[Path]], output: Path) -> None:
    """Writes a merge's report, a comparison, or both as one page of HTML.

    Args:
        documents: the folder of a merge, a `qmerge-report.json`, what `compare` wrote as `.json`, or two of these.
        output: an `.html` file.
    """
    paths = [documents] if isinstance(documents, (str, os.PathLike)) else list(documents)
    run("report", [*flags(output=output), "--", *[os.fspath(path) for path in paths]], None)


def truncate(
    adapter: Path,
    output: Path,
    *,
    rank: int,
    base: Optional[Path] = None,
    calibrate: Optional[Path] = None,
    calibration_tokens: Optional[int] = None,
    calibration_time: Optional[str] = None,
    calibration: Optional[Path] = None,
    seed: Optional[int] = None,
    dtype: Optional[Literal["same", "f32", "f16", "bf16"]] = None,
    map: Maps = None,
    allow_unused: bool = False,
    base_is_residual: bool = False,
    peft_bugs: bool = False,
    force: bool = False,
    threads: Optional[int] = None,
    max_memory: Union[int, str, None] = None,
    scratch: Optional[Path] = None,
    progress: Watcher = None,
) -> Truncation:
    """Cuts an adapter to a lower rank, to serve it beside the untouched base.

    Args:
        adapter: folder or hub id of a LoRA.
        output: folder.
        rank: the new rank, of all modules.
        base: the base model, to keep what counts on its layers' inputs (default: what is largest in the adapter's own values).
        calibrate: a text file like the model's task, to see what its layers are given (default: text that the model writes itself).
        calibration_tokens: how many tokens to calibrate on (default: 3072 that the model writes itself, or 6144 of a text).
        calibration_time: as many tokens as take about so long on one thread, like "20m"; computed from the model's size, so the same on every machine.
        calibration: a file, or a folder of files that add up, that `calibrate` stored for this base: the model is not run.
        seed: seed of the text that the model writes.
        dtype: element type of the new factors: "same" (the default), "f32", "f16" or "bf16".
        progress: a function that is told how far the work is (`qmerge.Progress`: share, phase, layers), or True for a bar.
    """
    options = flags(
        adapter=adapter,
        output=output,
        rank=rank,
        base=base,
        calibrate=calibrate,
        calibration_tokens=calibration_tokens,
        calibration_time=calibration_time,
        calibration=calibration,
        seed=seed,
        dtype=dtype,
        map=maps(map),
        allow_unused=allow_unused,
        base_is_residual=base_is_residual,
        peft_bugs=peft_bugs,
        force=force,
        threads=threads,
        max_memory=max_memory,
        scratch=scratch,
    )
    return Truncation(run("truncate", options, progress)[1])


def combine(
    adapter: Adapters,
    output: Path,
    *,
    method: Optional[str] = None,
    rank: Optional[int] = None,
    density: Optional[float] = None,
    majority_sign: Optional[Literal["total", "frequency"]] = None,
    seed: Optional[int] = None,
    lora_scale: Scales = None,
    base: Optional[Path] = None,
    calibration: Optional[Path] = None,
    dtype: Optional[Literal["f32", "f16", "bf16"]] = None,
    base_is_residual: bool = False,
    force: bool = False,
    threads: Optional[int] = None,
    adapter_names: Optional[Sequence[str]] = None,
    progress: Watcher = None,
) -> Made:
    """Makes one adapter of several, each with a weight.

    Args:
        adapter: as `merge` takes them: LoRAs, each with or without a weight.
        output: folder.
        method: "exact" (the default: the true weighted sum), "svd" (the default with a rank), or a combination of PEFT's: "cat", "linear", "ties", "dare_linear" and others.
        rank: the new rank, of all modules, for the methods that take one.
        density: share of its values that each adapter keeps, for "ties", "dare" and "magnitude_prune".
        majority_sign: what elects a sign, for "ties".
        seed: seed of what "dare" draws.
        lora_scale: factors by regular expressions that are found in a module's path.
        base, calibration: a base and what `calibrate` stored for it: directions are those that count on its layers' inputs, for the methods that take a rank.
        dtype: element type of the new factors.
    """
    options = flags(
        adapter=adapters(adapter, adapter_names),
        output=output,
        method=method,
        rank=rank,
        density=density,
        majority_sign=majority_sign,
        seed=seed,
        lora_scale=scales(lora_scale),
        base=base,
        calibration=calibration,
        dtype=dtype,
        base_is_residual=base_is_residual,
        force=force,
        threads=threads,
    )
    return Made(run("combine", options, progress)[1])


def extract(
    base: Path,
    tuned: Path,
    output: Path,
    *,
    rank: Optional[int] = None,
    energy: Optional[float] = None,
    calibration: Optional[Path] = None,
    full: bool = True,
    dtype: Optional[Literal["f32", "f16", "bf16"]] = None,
    seed: Optional[int] = None,
    force: bool = False,
    threads: Optional[int] = None,
    progress: Watcher = None,
) -> Made:
    """Makes a LoRA of what a tuned model differs from its base by.

    Args:
        base, tuned: folders, files or hub ids, in any format.
        output: folder.
        rank: the rank of all modules.
        energy: in its place, the share of each module's difference, squared, that its rank has to hold.
        calibration: what `calibrate` stored for the base: directions are those that count on its layers' inputs.
        full: take what is no linear layer's weight whole, where it differs.
        dtype: element type of the factors.
        seed: seed of what large matrices are searched with.
    """
    options = flags(
        base=base,
        tuned=tuned,
        output=output,
        rank=rank,
        energy=energy,
        calibration=calibration,
        no_full=not full,
        dtype=dtype,
        seed=seed,
        force=force,
        threads=threads,
    )
    return Made(run("extract", options, progress)[1])


def convert_adapter(
    base: Path,
    adapter: Adapters,
    output: Path,
    *,
    to: Literal["peft", "gguf-lora"] = "peft",
    rank: Optional[int] = None,
    energy: Optional[float] = None,
    dtype: Optional[Literal["f32", "f16", "bf16"]] = None,
    seed: Optional[int] = None,
    map: Maps = None,
    lora_scale: Scales = None,
    allow_unused: bool = False,
    base_is_residual: bool = False,
    peft_bugs: bool = False,
    force: bool = False,
    threads: Optional[int] = None,
    progress: Watcher = None,
) -> Made:
    """Makes a LoRA of an adapter of any method; one that multiplies the base's weights becomes a LoRA of this base alone.

    Args:
        base: the model that the adapter belongs to.
        to: a folder as PEFT's, which needs a rank or an energy, or "gguf-lora", a .gguf file for llama.cpp.
        rank, energy, dtype, seed: as in `extract`.
    """
    options = flags(
        base=base,
        adapter=adapters(adapter),
        output=output,
        to=to,
        rank=rank,
        energy=energy,
        dtype=dtype,
        seed=seed,
        map=maps(map),
        lora_scale=scales(lora_scale),
        allow_unused=allow_unused,
        base_is_residual=base_is_residual,
        peft_bugs=peft_bugs,
        force=force,
        threads=threads,
    )
    return Made(run("convert-adapter", options, progress)[1])


def unmerge(merged: Path, adapter: Adapters, output: Path, *, progress: Watcher = None, **options: Any) -> Report:
    """Takes an adapter out of a merge again. Its report says what that can give back.

    Args:
        merged: the merge.
        adapter: what was merged, with the weights that it had.
        output: folder or file.
        options: `to`, `map`, `allow_unused`, `force`, `resume`, `threads` and `max_memory`, as `merge` takes them.
    """
    options["map"] = maps(options.get("map"))
    words = flags(base=merged, adapter=adapters(adapter), output=output, **options)
    return Report(run("unmerge", words, progress)[1])


def generate(
    base: Path,
    prompt: str,
    adapter: Adapters = (),
    *,
    chat: bool = False,
    system: Optional[str] = None,
    max_tokens: Optional[int] = None,
    temperature: Optional[float] = None,
    top_p: Optional[float] = None,
    seed: Optional[int] = None,
    map: Maps = None,
    lora_scale: Scales = None,
    allow_unused: bool = False,
    base_is_residual: bool = False,
    peft_bugs: bool = False,
    threads: Optional[int] = None,
    max_memory: Union[int, str, None] = None,
    scratch: Optional[Path] = None,
    adapter_names: Optional[Sequence[str]] = None,
    progress: Watcher = None,
) -> Generation:
    """Continues a prompt with a model, or with a base and its adapter kept apart, which is exact.

    Args:
        chat: the prompt is a message: put it into the model's chat template.
        system: what the model is told before that message.
        max_tokens: most tokens of the answer (128).
        temperature: 0 takes the most likely token.
        top_p: draw among the most likely tokens that together have this share.
        seed: the same seed draws the same tokens.
    """
    options = flags(
        base=base,
        adapter=adapters(adapter, adapter_names),
        prompt=prompt,
        chat=chat,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        map=maps(map),
        lora_scale=scales(lora_scale),
        allow_unused=allow_unused,
        base_is_residual=base_is_residual,
        peft_bugs=peft_bugs,
        threads=threads,
        max_memory=max_memory,
        scratch=scratch,
    )
    return Generation(run("generate", options, progress)[1])


def tensors(path: Path) -> list[Tensor]:
    """The tensors of a model or an adapter that have values, with their formats and shapes."""
    return [Tensor(name, form, tuple(shape)) for name, form, shape in _qmerge.tensors(path)]


def read(path: Path, name: str, rows: Optional[slice] = None) -> NDArray[numpy.float32]:
    """The values of a tensor in any format, decoded to float32.

    Args:
        path: a model or an adapter.
        name: the tensor's name, see `tensors`.
        rows: a slice of the first dimension, with a step of 1; all rows without it.
    """
    try:
        import numpy
    except ImportError as missing:
        raise ImportError("qmerge.read needs numpy: pip install numpy") from missing

    values, shape = _qmerge.read(path, name, rows)
    return numpy.frombuffer(values, dtype="<f4").reshape(shape)


def _with_defaults(options: dict[str, Any], **given: object) -> dict[str, object]:
    """Arguments that stand without their names."""
    return {"adapter_names": None, "tuned": None, "lora_scale": None, "map": None, "double_quant": None, **options, **given}


def _merge_options(given: dict[str, object]) -> list[str]:
    """The arguments of `merge` or `plan` as the program's options."""
    options = dict(given)
    for name in ("progress", "progressbar", "safe_merge"):
        options.pop(name, None)
    options["adapter"] = adapters(options["adapter"] or (), options.pop("adapter_names"))  # type: ignore[arg-type]
    options["tuned"] = adapters(options["tuned"] or ())  # type: ignore[arg-type]
    options["lora_scale"] = scales(options["lora_scale"])  # type: ignore[arg-type]
    options["map"] = maps(options["map"])  # type: ignore[arg-type]
    options["double_quant"] = yes_or_no(options["double_quant"])  # type: ignore[arg-type]
    return flags(**options)
