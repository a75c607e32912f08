"""Calibration through torch, where torch, transformers and PEFT are installed."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import qmerge
from qmerge.peft import merge_and_save

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def read(path: Path) -> tuple[dict[str, numpy.ndarray], list[dict[str, Any]], dict[str, str]]:
    """Moments by weight, what the file says of each input, and its metadata."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__")
    found, inputs = {}, json.loads(metadata["qmerge.inputs"])
    for kept in inputs:
        entry = header[kept["weights"][0]]
        start, end = (8 + length + at for at in entry["data_offsets"])
        wide = numpy.frombuffer(data[start:end], "<f4" if entry["dtype"] == "F32" else "<u2")
        values = wide if entry["dtype"] == "F32" else (wide.astype("<u4") << 16).view("<f4")
        for name in kept["weights"]:
            found[name] = values.reshape(entry["shape"])
    return found, inputs, metadata


def distance(a: numpy.ndarray, b: numpy.ndarray) -> float:
    return float(numpy.linalg.norm(a - b) / numpy.linalg.norm(a))


@pytest.fixture(scope="module")
def live(demo: Path) -> Any:
    base = transformers.AutoModelForCausalLM.from_pretrained(demo / "base-bf16", dtype=torch.float32)
    return peft.PeftModel.from_pretrained(base, demo / "adapter")


def windows(demo: Path) -> list[list[int]]:
    """Those that `qmerge calibrate --text` takes."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo / "base-bf16")
    ids = tokenizer((demo / "calibration.txt").read_text(), add_special_tokens=False)["input_ids"]
    size = min(256, json.loads((demo / "base-bf16/config.json").read_text())["max_position_embeddings"])
    cut = [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)]
    cut = cut[: len(cut) - min(len(cut) // 8, 4)]
    count = min(24, len(cut))
    return [cut[at * len(cut) // count] for at in range(count)]


def test_the_same_as_without_torch(live: Any, demo: Path, tmp_path: Path) -> None:
    qmerge.calibrate(demo / "base-bf16", tmp_path / "native", demo / "adapter", text=demo / "calibration.txt")
    done = qmerge.torch.calibrate(live, windows(demo), tmp_path / "live.safetensors")
    shutil.move(tmp_path / "native", tmp_path / "native.safetensors")
    native, native_inputs, _ = read(tmp_path / "native.safetensors")
    mine, inputs, _ = read(tmp_path / "live.safetensors")
    assert (tmp_path / "live.safetensors").stat().st_size == done.bytes
    assert {frozenset(kept["weights"]) for kept in inputs} == {frozenset(kept["weights"]) for kept in native_inputs}
    assert [kept["tokens"] for kept in inputs] == [kept["tokens"] for kept in native_inputs]
    # The native run multiplies values that are rounded to bf16.
    assert max(distance(native[name], mine[name]) for name in native) < 3e-3
    # Moments of the one file as of the other: the live one belongs to every form of this model, the native one to the base that was run.
    kept = [
        qmerge.merge(demo / base, demo / "adapter", tmp_path / f"{base}-{file}", to="nf4", calibration=tmp_path / file, measure="never")
        for base, file in [("base-bf16", "native.safetensors"), ("base-bf16", "live.safetensors"), ("base-nf4", "live.safetensors")]
    ]
    assert abs(kept[0].summary.kept_output - kept[1].summary.kept_output) < 1e-3
    assert kept[2].summary.kept_output > 0.9
    with pytest.raises(qmerge.ExistsError):
        qmerge.torch.calibrate(live, windows(demo), tmp_path / "live.safetensors")


CUT_UP = """
import sys, torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import AutoModelForCausalLM

def work(rank, folder, out, kind):
    dist.init_process_group("gloo", init_method=f"file://{out}/{kind}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    import qmerge.torch
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if kind == "fully_shard":
        from torch.distributed.fsdp import fully_shard
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        model = fully_shard(model, mesh=mesh)
    else:
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy
        wrap = ModuleWrapPolicy({type(model.model.layers[0])})
        model = FullyShardedDataParallel(model, auto_wrap_policy=wrap, device_id=torch.device("cpu"), use_orig_params=True)
    texts = [[(at * 7 + number) % 200 for at in range(64)] for number in range(8)]
    qmerge.torch.calibrate(model, texts[rank::2], f"{out}/{kind}-{rank}.safetensors")
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(work, args=tuple(sys.argv[1:]), nprocs=2)
"""


@pytest.mark.parametrize("kind", ["fully_shard", "FullyShardedDataParallel"])
def test_a_model_cut_up_over_processes(kind: str, demo: Path, tmp_path: Path) -> None:
    """Each process runs texts of its own; their moments add up to those of one that runs all."""
    whole = transformers.AutoModelForCausalLM.from_pretrained(demo / "base-bf16", dtype=torch.float32)
    texts = [[(at * 7 + number) % 200 for at in range(64)] for number in range(8)]
    # Without an adapter, too.
    qmerge.torch.calibrate(whole, texts, tmp_path / "whole.safetensors")
    script = tmp_path / "script.py"
    script.write_text(CUT_UP)
    subprocess.run([sys.executable, str(script), str(demo / "base-bf16"), str(tmp_path), kind], check=True, timeout=300)
    one, _, known_by = read(tmp_path / "whole.safetensors")
    parts = [read(tmp_path / f"{kind}-{rank}.safetensors") for rank in (0, 1)]
    assert all(set(part) == set(one) for part, _, _ in parts)
    assert max(distance(one[name], (parts[0][0][name] + parts[1][0][name]) / 2) for name in one) < 1e-6
    # Whose they are is what the whole model says: the same where it is gathered; where the outermost unit is what is whole, other tensors may be chosen too.
    for _, _, metadata in parts:
        mine, all_of_it = json.loads(metadata["qmerge.model"]), json.loads(known_by["qmerge.model"])
        common = mine.keys() & all_of_it.keys()
        assert common and all(mine[name] == all_of_it[name] for name in common)
        assert kind == "fully_shard" or mine == all_of_it


def test_ways_of_calling(live: Any, demo: Path, tmp_path: Path) -> None:
    """Padding is not seen, and sums may be taken in several passes, or kept in 16 bits."""
    texts = windows(demo)[:3]
    qmerge.torch.calibrate(live, [texts[0], texts[1][:9], texts[2]], tmp_path / "a")
    want, inputs, _ = read(tmp_path / "a")
    ids, mask = torch.zeros(2, len(texts[0]), dtype=torch.int64), torch.zeros(2, len(texts[0]), dtype=torch.int64)
    ids[0], mask[0] = torch.tensor(texts[0]), 1
    ids[1, :9], mask[1, :9] = torch.tensor(texts[1][:9]), 1
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    qmerge.torch.calibrate(live, [batch, texts[2]], tmp_path / "b", max_bytes=1 << 18)
    found, again, _ = read(tmp_path / "b")
    assert inputs == again
    assert max(distance(want[name], found[name]) for name in want) < 1e-4
    qmerge.torch.calibrate(live, [batch, texts[2]], tmp_path / "c", dtype="bf16")
    assert max(distance(want[name], found) for name, found in read(tmp_path / "c")[0].items()) < 5e-3
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo / "base-bf16")
    done = qmerge.torch.calibrate(live, ["And God said unto him"] * 2, tmp_path / "d", tokenizer=tokenizer)
    assert done.taken_from.startswith(f"{2 * len(tokenizer('And God said unto him')['input_ids'])} tokens in 2 sequences")
    for wrong in ("one text", [], [[]]):
        with pytest.raises(qmerge.UsageError):
            qmerge.torch.calibrate(live, wrong, tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_a_live_model_with_texts(live: Any, demo: Path, tmp_path: Path) -> None:
    report = merge_and_save(live, tmp_path / "out", base=demo / "base-nf4", calibrate=windows(demo)[:4], measure="never")
    assert report.rounding.method == "adapter"
    assert "4 sequences, run in torch, stored in qmerge_calibration.safetensors" in report.rounding.calibration
    with pytest.raises(qmerge.UsageError, match="for a live model"):
        merge_and_save((demo / "base-nf4", demo / "adapter"), tmp_path / "no", calibrate=["text"])


def unknown_family(folder: Path, name: str) -> Path:
    """A small random model that qmerge does not run, as NF4, and an adapter of it."""
    if name == "opt":
        config = transformers.OPTConfig(
            vocab_size=96, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=64
        )
        model = transformers.OPTForCausalLM(config)
        modules = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    else:
        config = transformers.BloomConfig(vocab_size=96, hidden_size=64, n_layer=2, n_head=4)
        model = transformers.BloomForCausalLM(config)
        modules = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    torch.manual_seed(1)
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor, std=0.05) if tensor.ndim > 1 else None
    model.save_pretrained(folder / "plain")
    qmerge.convert(folder / "plain", folder / "base", to="nf4")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=modules, task_type="CAUSAL_LM"))
    for tensor_name, tensor in adapted.named_parameters():
        if "lora_B" in tensor_name:
            torch.nn.init.normal_(tensor, std=0.02)
    adapted.save_pretrained(folder / "adapter")
    return folder


@pytest.mark.parametrize("name", ["opt", "bloom"])
def test_a_family_that_qmerge_does_not_run(name: str, tmp_path: Path) -> None:
    folder = unknown_family(tmp_path, name)
    plain = qmerge.merge(folder / "base", folder / "adapter", folder / "fast")
    assert "qmerge.torch.calibrate" in (plain.rounding.reason or "")
    # Loaded as what lies on disk says it is not: the marks of a model do not depend on how its linear layers are stored.
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "plain")
    model = peft.PeftModel.from_pretrained(base, folder / "adapter")
    report = merge_and_save(model, folder / "merged", base=folder / "base")
    assert report.rounding.method == "adapter"
    assert "that the model wrote" in report.rounding.calibration
    assert report.summary.kept_output > 0.5
    assert all(weight.rounding == "adapter" for weight in report.weights)
    # Another model of the same shapes.
    (folder / "other").mkdir()
    other = unknown_family(folder / "other", name)
    with torch.no_grad():
        for tensor in model.get_input_embeddings().parameters():
            tensor += 0.1
    qmerge.torch.calibrate(model, [[1, 2, 3]], folder / "wrong.safetensors")
    with pytest.raises(qmerge.MismatchError, match="belongs to another model"):
        qmerge.merge(other / "base", other / "adapter", folder / "no", calibration=folder / "wrong.safetensors")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "plain")
    qmerge.convert(folder / "plain", folder / "base", to="nf4")
    return folder


ROWS, LENGTH = 32, 24


def train(tiny: Path, output: Path, callback: Any, seed: int = 0, **options: Any) -> Any:
    """A few steps of a LoRA on rows of which each has padding at its end."""
    pytest.importorskip("accelerate")
    transformers.set_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny / "plain")
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1)
    )
    model.enable_input_require_grads()
    ids = torch.randint(1, 128, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[:, -4:], ids[:, -4:] = 0, 0
    rows = [{"input_ids": a, "attention_mask": b, "labels": a} for a, b in zip(ids, mask)]
    arguments = transformers.TrainingArguments(
        output_dir=str(output),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_steps=3,
        seed=seed,
        **options,
    )
    callbacks = [callback] if callback else []
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows[:4], callbacks=callbacks
    )
    trainer.train()
    model.save_pretrained(output)
    return model


@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_moments_of_training(tiny: Path, tmp_path: Path, checkpointing: bool | None) -> None:
    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1}
    if checkpointing is not None:
        options |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": checkpointing}}
    callback = qmerge.torch.MomentsCallback(steps=2, dtype="f32")
    assert isinstance(callback, transformers.TrainerCallback)
    with_it = train(tiny, tmp_path / "with", callback, **options)
    without = train(tiny, tmp_path / "without", None, **options)
    for (name, a), (_, b) in zip(with_it.named_parameters(), without.named_parameters()):
        assert torch.equal(a, b), name
    # Two steps of two batches of two rows, without padding, without evaluation, and each pass once.
    _, inputs, metadata = read(tmp_path / "with" / qmerge.torch.FILE_NAME)
    assert metadata["qmerge.taken_from"] == f"{2 * 2 * 2 * (LENGTH - 4)} tokens collected in training"
    assert {kept["tokens"] for kept in inputs} == {2 * 2 * 2 * (LENGTH - 4)}
    assert [len(kept["weights"]) for kept in inputs] == [3, 1, 2, 1] * 2
    assert not (tmp_path / "with/checkpoint-3" / qmerge.torch.FILE_NAME).exists()
    assert (tmp_path / "with/checkpoint-6" / qmerge.torch.FILE_NAME).exists()
    assert not (tmp_path / "without" / qmerge.torch.FILE_NAME).exists()


def test_merge_finds_what_training_left(tiny: Path, tmp_path: Path) -> None:
    train(tiny, tmp_path / "lora", qmerge.torch.MomentsCallback(steps=2))
    for base in ("base", "plain"):
        report = qmerge.merge(tiny / base, tmp_path / "lora", tmp_path / f"merged-{base}", to="nf4" if base == "plain" else None)
        assert report.rounding.calibration == "160 tokens collected in training, stored in qmerge_calibration.safetensors"
        assert not any("calibration" in text for text in report.warnings)
    fast = qmerge.merge(tiny / "base", tmp_path / "lora", tmp_path / "fast", fast=True)
    nearest = qmerge.merge(tiny / "base", tmp_path / "lora", tmp_path / "nearest", rounding="nearest")
    assert "training" not in (fast.rounding.calibration or "") and nearest.rounding.calibration is None
    # Trained anew, without moments: what lies there is another adapter's.
    train(tiny, tmp_path / "again", None, seed=1)
    shutil.copy(tmp_path / "lora" / qmerge.torch.FILE_NAME, tmp_path / "again")
    report = qmerge.merge(tiny / "base", tmp_path / "again", tmp_path / "stale")
    assert any("belongs to another adapter" in text for text in report.warnings), report.warnings
    assert "the model wrote" in report.rounding.calibration
    report = qmerge.merge(tiny / "base", [tmp_path / "lora", tmp_path / "again"], tmp_path / "two")
    assert any("with one of 2 adapters alone" in text for text in report.warnings), report.warnings


def test_training_that_ends_early(tiny: Path, tmp_path: Path) -> None:
    callback = qmerge.torch.MomentsCallback(steps=1)
    state, args = transformers.TrainerState(max_steps=9, global_step=2), transformers.TrainingArguments(output_dir=str(tmp_path))
    callback.on_step_begin(args, state, None, model=torch.nn.Linear(2, 2))
    with pytest.warns(UserWarning, match="before its last 1 steps"):
        callback.on_train_end(args, state, None)
    assert not list(tmp_path.iterdir())


def counts(path: Path) -> dict[str, int]:
    """Tokens that layers were given, by each layer's name."""
    return {name: found["tokens"] for found in read(path)[1] for name in found["weights"]}


def test_an_encoder_and_its_decoder_have_tokens_of_their_own(tmp_path: Path) -> None:
    sizes = {"d_model": 64, "d_ff": 64, "num_layers": 1, "num_heads": 4, "d_kv": 16, "vocab_size": 100}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(decoder_start_token_id=0, **sizes))
    mask = torch.zeros(4, 20, dtype=torch.long)
    mask[:, :5] = 1
    ids = torch.ones(4, 20, dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    qmerge.torch.calibrate(model, [batch], tmp_path / "moments.safetensors")
    found = counts(tmp_path / "moments.safetensors")
    block = "decoder.block.0.layer.1.EncDecAttention"
    assert found["encoder.block.0.layer.0.SelfAttention.q.weight"] == found[f"{block}.k.weight"] == 20
    assert found["decoder.block.0.layer.0.SelfAttention.q.weight"] == found[f"{block}.q.weight"] == 80


def test_a_text_s_padding_is_not_that_of_images(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {"image_size": 16, "patch_size": 4, **sizes}
    config = transformers.CLIPConfig(text_config={"vocab_size": 100, **sizes}, vision_config=vision)
    mask = torch.zeros(4, 17, dtype=torch.long)
    mask[:, :8] = 1
    batch = {"input_ids": torch.ones(4, 17, dtype=torch.long), "attention_mask": mask, "pixel_values": torch.zeros(4, 3, 16, 16)}
    qmerge.torch.calibrate(transformers.CLIPModel(config), [batch], tmp_path / "moments.safetensors")
    found = counts(tmp_path / "moments.safetensors")
    assert {name: tokens for name, tokens in found.items() if name.endswith("fc1.weight")} == {
        "text_model.encoder.layers.0.mlp.fc1.weight": 32,
        "vision_model.encoder.layers.0.mlp.fc1.weight": 68,
    }


def test_what_is_no_writer_is_rounded_without_data(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False))
    with pytest.raises(qmerge.UsageError, match="pass texts"):
        qmerge.torch.calibrate(adapted, None, tmp_path / "moments.safetensors")
    with pytest.raises(qmerge.UsageError, match="no option"):
        merge_and_save(adapted, tmp_path / "merged", base=tmp_path / "base", rouding="nearest")
    report = merge_and_save(adapted, tmp_path / "merged", base=tmp_path / "base", to="nf4")
    assert len(report.adapters) == 1 and (tmp_path / "merged/config.json").exists()
    with pytest.raises(qmerge.ExistsError):
        merge_and_save(adapted, tmp_path / "merged", base=tmp_path / "base", to="nf4")


def test_modes_and_names_are_left_alone(tiny: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny / "plain")
    # An adapter that is called as a part of paths is.
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]), adapter_name="model")
    frozen = next(module for name, module in model.named_modules() if name.endswith("layers.0"))
    model.train()
    frozen.eval()
    qmerge.torch.calibrate(model, [[1, 2, 3]], tmp_path / "moments.safetensors")
    assert model.training and not frozen.training
    assert read(tmp_path / "moments.safetensors")[2]["qmerge.adapter"]


def test_training_goes_on_where_memory_ends(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("qmerge._moments.Moments._add", fail)
    with pytest.warns(UserWarning, match="no moments are taken: out of memory"):
        train(tiny, tmp_path, qmerge.torch.MomentsCallback(steps=2))
    assert not (tmp_path / qmerge.torch.FILE_NAME).exists()
