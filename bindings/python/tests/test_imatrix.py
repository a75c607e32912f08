"""An importance matrix as llama.cpp writes it today, where its Python package is installed."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import qmerge

gguf = pytest.importorskip("gguf")

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def test_gguf(demo: Path, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "imatrix.gguf", "llama")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["texts/wiki.train.raw"])
    writer.add_uint32("imatrix.chunk_count", 2)
    random = numpy.random.default_rng(1)
    for tensor in qmerge.tensors(demo / "base-bf16"):
        module = next((module for module in NAMES if module in tensor.name), None)
        if module:
            name = tensor.name.replace("model.layers.", "blk.").replace(module, NAMES[module])
            sums = random.random((1, tensor.shape[1]), dtype="f4") * 512
            writer.add_tensor(f"{name}.in_sum2", sums)
            writer.add_tensor(f"{name}.counts", numpy.array([[512]], "f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    report = qmerge.merge(
        demo / "base-nf4", demo / "adapter", tmp_path / "out", imatrix=tmp_path / "imatrix.gguf", measure="never"
    )
    assert report.rounding.calibration == "the importance matrix of 512 tokens in imatrix.gguf, taken from wiki.train.raw"
    assert {weight.rounding for weight in report.weights} == {"adapter"}
