"""Makes testdata/adapters-of-others/mlx: adapters that mlx-lm saved, their bases, and what `mlx_lm.fuse` makes of them.

    pip install mlx-lm==0.32.2 "mlx[cpu]==0.32.4"
    python mlx_adapters.py ../adapters-of-others/mlx

Every case is a folder: base/ and adapter/ as mlx-lm writes them, and fused.safetensors, the weights that fusing changed, with `--dequantize`. Modules
are trained by hand: all factors are random.
"""

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import llama, qwen3_moe
from mlx_lm.tuner.utils import linear_to_lora_layers

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else "../adapters-of-others/mlx")

LLAMA = dict(
    model_type="llama", hidden_size=32, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4,
    num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=48, tie_word_embeddings=False,
)
MOE = dict(
    model_type="qwen3_moe", hidden_size=32, num_hidden_layers=1, intermediate_size=64, num_attention_heads=4,
    num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=48, tie_word_embeddings=False, head_dim=8, rope_theta=1e4,
    num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=32,
    norm_topk_prob=True, max_position_embeddings=64,
)


def randomize(model, names, sigma):
    new = [(n, mx.random.normal(p.shape).astype(p.dtype) * sigma if names(n) else p) for n, p in tree_flatten(model.parameters())]
    model.update(tree_unflatten(new))


def save(path, weights, config=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})
    if config is not None:
        (path.parent / "config.json").write_text(json.dumps(config, indent=1))


def case(name, module, config, args, *, kind="lora", dtype=mx.float32, bits=None):
    mx.random.seed(7)
    shutil.rmtree(ROOT / name, ignore_errors=True)
    model = module.Model(module.ModelArgs.from_dict(config))
    randomize(model, lambda n: "norm" not in n, 0.05)
    model.set_dtype(dtype)
    config = dict(config)
    if bits:
        nn.quantize(model, group_size=32, bits=bits, class_predicate=lambda p, m: hasattr(m, "to_quantized") and "gate" != p.split(".")[-1])
        config["quantization"] = config["quantization_config"] = {"group_size": 32, "bits": bits, "mode": "affine"}
    mx.eval(model.parameters())
    base = dict(tree_flatten(model.parameters()))
    save(ROOT / name / "base/model.safetensors", base, config)
    model.freeze()
    if kind == "full":
        for layer in model.layers[-1:]:
            layer.unfreeze()
        randomize(model, lambda n: ".layers.1." in n and "norm" not in n, 0.05)
    else:
        linear_to_lora_layers(model, args["num_layers"], args["lora_parameters"], use_dora=kind == "dora")
        randomize(model, lambda n: n.endswith((".lora_a", ".lora_b")), 0.1)
        if kind == "dora":
            new = [(n, p * (1 + 0.1 * mx.random.normal(p.shape))) for n, p in tree_flatten(model.parameters()) if n.endswith(".m")]
            model.update(tree_unflatten(new))
    adapter = ROOT / name / "adapter"
    adapter.mkdir(parents=True)
    mx.save_safetensors(str(adapter / "adapters.safetensors"), dict(tree_flatten(model.trainable_parameters())))
    saved = {"model": "someone/tiny", "fine_tune_type": kind, "batch_size": 4, "optimizer": "adam", **args}
    (adapter / "adapter_config.json").write_text(json.dumps(saved, indent=4, sort_keys=True))
    fused = [(n, m.fuse(dequantize=True)) for n, m in model.named_modules() if hasattr(m, "fuse")]
    model.update_modules(tree_unflatten(fused))
    after = dict(tree_flatten(model.parameters()))
    changed = {n: w.astype(mx.float32) for n, w in after.items() if n not in base or w.shape != base[n].shape or not mx.array_equal(w, base[n]).item()}
    save(ROOT / name / "fused.safetensors", changed)
    print(name, sorted(changed)[:3], len(changed))


def args(rank, scale, keys=None, layers=2):
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0}
    if keys:
        parameters["keys"] = keys
    return {"num_layers": layers, "lora_parameters": parameters}


case("lora", llama, LLAMA, args(4, 3.7))
case("lora-4bit", llama, LLAMA, args(8, 20.0, ["self_attn.q_proj", "self_attn.v_proj"]), dtype=mx.bfloat16, bits=4)
case("embedding", llama, LLAMA, args(4, 2.0, ["self_attn.o_proj", "model.embed_tokens", "lm_head"], 1))
case("dora", llama, LLAMA, args(4, 3.0, ["self_attn.q_proj", "mlp.down_proj"], 1), kind="dora")
case("full", llama, LLAMA, args(8, 20.0, layers=1), kind="full")
case("experts", qwen3_moe, MOE, args(4, 2.0))
case("experts-4bit", qwen3_moe, MOE, args(4, 2.0, ["mlp.switch_mlp.gate_proj", "mlp.switch_mlp.down_proj"]), bits=4)
