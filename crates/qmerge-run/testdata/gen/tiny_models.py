"""Makes testdata/tiny: tiny random language models, and the logits that Hugging Face transformers computes with them.

    pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2 bitsandbytes==0.50.2 safetensors==0.8.0
    python tiny_models.py [--out ../tiny] [case ...]

Without case names every case is made; with names only those (an adapter case needs its model's case to be there). It runs on the CPU, on one
thread, without the network, in about a minute. Run again with the same versions it writes the same bytes.

What a case folder holds
  a model     config.json and model.safetensors as `save_pretrained` writes them; logits.safetensors with `input_ids` (int64, 2 x 24) and
              `logits` (float32, 2 x 24 x vocabulary).
              Some have config.v4.json too: the same configuration in the spelling that transformers 4 wrote and most published models still
              have (rope_theta, rope_scaling, ...). The script makes sure that it gives the same logits.
  an adapter  base.txt, the name of the case whose model it belongs to; adapter/ as PEFT saves it; apart.safetensors, `input_ids` and `logits`
              of base and adapter kept apart (not merged).

How the logits are computed: the saved folder is loaded again, in float32 and eval mode, attn_implementation="eager" (for experts too),
use_cache=False, no attention mask, so every row is plain causal from position 0. For quantized models see `decoded` below.

Every parameter is drawn from its own generator, seeded by case and parameter name, so no case depends on another or on the order of parameters.
Sizes are small but unequal, so that a mixed-up pair of dimensions shows. A fixture that would not notice a mistake is worth nothing: each case names changes of
its configuration (`wrong`) and the script stops unless every one of them moves some logit by more than NOTICE.
"""

import argparse
import json
import os
import shutil
import sys
import warnings
import zlib

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

NOTICE = 0.02  # a wrong configuration must move some logit by at least this much
F32, BF16 = torch.float32, torch.bfloat16
ROOT = None  # set in main


def generator(*names):
    return torch.Generator().manual_seed(zlib.crc32("/".join(names).encode()))


# ---------------------------------------------------------------------------------------------------------------- weights


def randomize(model, case, gain):
    """Matrices N(0, (gain / sqrt(inputs))^2), embeddings and heads N(0, 0.5^2), norm weights 1 + 0.2 N, biases 0.2 N. Norms that add 1 to the
    stored weight (Gemma, Nemotron, Qwen 3.5) store 0.2 N."""
    kind = model.config.model_type
    # What has a name of its own in the middle of a layer of such a model is an ordinary norm.
    centred = kind.startswith(("gemma", "nemotron", "qwen3_5", "qwen3_next")) and not kind.startswith(("gemma3n", "gemma4"))
    turned = kind == "gpt2" or kind == "gpt_oss" or kind == "llama4_text"  # matrices or stacks of inputs x outputs
    with torch.no_grad():
        buffers = [(name, b) for name, b in model.named_buffers() if name.endswith(("correction_bias", "expert_bias"))]
        for name, p in [*model.named_parameters(), *buffers]:
            noise = torch.randn(p.shape, generator=generator(case, name))
            offset = 0.0 if centred and "linear_attn" not in name else 1.0
            if name.endswith("bias"):
                value = 0.2 * noise
            elif name.endswith("A_log") or name.endswith("sinks"):
                value = noise
            elif p.ndim == 1 or "_norm." in name:
                value = offset + 0.2 * noise
            elif "embed" in name or "lm_head" in name or "wte" in name or "wpe" in name:
                value = 0.5 * noise
            else:
                side = -2 if turned and (kind == "gpt2" or p.ndim == 3) else -1
                value = noise * gain / p.shape[side] ** 0.5
            p.copy_(value)
        for name, b in model.named_buffers():
            if name.endswith("layer_scalar"):
                b.copy_(1 + 0.2 * torch.randn(b.shape, generator=generator(case, name)))


def tokens(case, vocab):
    return torch.randint(0, vocab, (2, 24), generator=generator(case, "input_ids"))


@torch.no_grad()
def logits(model, ids):
    model.eval()
    return model(input_ids=ids, use_cache=False).logits


def load(folder, config=None, dtype=F32):
    how = {"config": config} if config is not None else {}
    kind = getattr(transformers, read_json(os.path.join(folder, "config.json"))["architectures"][0])
    model = kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager", **how)
    config = model.config.get_text_config()
    if hasattr(config, "num_local_experts") or hasattr(config, "num_experts"):
        model.set_experts_implementation("eager")
    return model


def save_logits(path, ids, values):
    assert torch.isfinite(values).all() and values.dtype == F32
    save_file({"input_ids": ids, "logits": values.contiguous()}, path)


def remove(folder, *names):
    for name in names:
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))


def read_json(path):
    with open(path) as f:
        return json.load(f)


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def fresh(case):
    folder = os.path.join(ROOT, case)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    return folder


def report(case, values, note=""):
    print(f"{case:24} largest {values.abs().max():6.2f}  spread {values.std():5.2f}  {note}", flush=True)


# ---------------------------------------------------------------------------------------------------------------- old spelling


def old_spelling(config):
    """The configuration as transformers 4 wrote it. Only keys that changed are touched."""
    c = dict(config)
    if "text_config" in c and c["model_type"] in ("qwen2_vl", "qwen2_5_vl"):
        # the language model's fields stood at the top
        c = {**c.pop("text_config"), **c}
    elif "text_config" in c:
        c["text_config"] = old_spelling(c["text_config"])
    if "dtype" in c:
        c["torch_dtype"] = c.pop("dtype")
    c["transformers_version"] = "4.51.0"
    rope = c.pop("rope_parameters", None)
    kind = c["model_type"]
    if kind == "gemma3_text":
        full = dict(rope["full_attention"])
        c["rope_theta"] = full.pop("rope_theta")
        c["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        c["rope_scaling"] = None if full["rope_type"] == "default" else full
        c["sliding_window_pattern"] = c.pop("layer_types").index("full_attention") + 1
        c.pop("_sliding_window_pattern", None)
    elif kind == "gemma3n_text":
        c["rope_theta"], c["rope_local_base_freq"] = rope["full_attention"]["rope_theta"], rope["sliding_attention"]["rope_theta"]
        c["rope_scaling"] = None
    elif kind == "gemma4_text":
        # as published: layers without a window have heads of their own
        c["rope_parameters"] = rope
        own = next(iter(c.pop("per_layer_config").values()))
        c["global_head_dim"], c["num_global_key_value_heads"] = own["head_dim"], own.get("num_key_value_heads")
    elif kind == "olmo3":
        c["rope_scaling"] = without("rope_theta")(rope["full_attention"])
        c["rope_theta"] = rope["full_attention"]["rope_theta"]
    elif rope is not None:
        rope = dict(rope)
        c["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            c["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        if kind == "phi3" and rope["rope_type"] == "longrope":
            # Phi-3 calls the kind "type" and keeps the original length outside
            c["rope_scaling"] = {"type": "longrope", "long_factor": rope["long_factor"], "short_factor": rope["short_factor"]}
        else:
            c["rope_scaling"] = None if rope["rope_type"] == "default" else rope
        if "mrope_section" in rope:
            kind_of_rope = {"rope_type": "default"} if kind == "qwen3_vl_text" else {"type": "mrope"}
            c["rope_scaling"] = {**kind_of_rope, "mrope_section": rope["mrope_section"]}
    if kind == "gpt_neox":
        c["rotary_emb_base"], c["rotary_pct"] = c.pop("rope_theta"), c.pop("partial_rotary_factor")
    if kind in ("cohere2", "exaone4") and c.get("sliding_window"):
        c["sliding_window_pattern"] = c.pop("layer_types").index("full_attention") + 1
    if kind in ("gemma2", "qwen2", "qwen3", "smollm3"):
        c.pop("layer_types", None)  # derived: Gemma 2 alternates, Qwen by max_window_layers, SmolLM3 by no_rope_layers
    if c.get("head_dim") == c.get("hidden_size", 0) // c.get("num_attention_heads", 1):
        del c["head_dim"]  # was written only where it differs
    if kind == "qwen3_moe":
        c["num_experts"] = c.pop("num_local_experts", c.get("num_experts"))
    return c


# ---------------------------------------------------------------------------------------------------------------- models

MODELS = {}


def model_case(name, kind, *, wrong=(), old=True, gain=1.5, dtype=F32, **sizes):
    """wrong: changes of the configuration, each a dict, that the logits must notice. A value may be a function of the old value. Weights are stored as
    `dtype`, and the model is computed in float32."""
    MODELS[name] = (kind, sizes, wrong, old, gain, dtype)


def changed(folder, change):
    whole = AutoConfig.from_pretrained(folder)
    config = whole.get_text_config()
    for key, value in change.items():
        setattr(config, key, value(getattr(config, key)) if callable(value) else value)
    return whole


def make_model(case):
    kind, sizes, wrong, old, gain, dtype = MODELS[case]
    folder = fresh(case)
    if callable(sizes.get("vision_config")):
        sizes = {**sizes, "vision_config": sizes["vision_config"](), "text_config": sizes["text_config"]()}
    config = getattr(transformers, kind + "Config")(**sizes)
    make = {"GPT2": "GPT2LMHeadModel"}.get(kind, kind.removesuffix("Text") + "ForCausalLM")
    if hasattr(config, "vision_config"):
        make = kind + "ForConditionalGeneration"
    model = getattr(transformers, make)(config).float()
    randomize(model, case, gain)
    model.to(dtype).save_pretrained(folder)
    remove(folder, "generation_config.json")
    if case.endswith("_published"):
        # experts with inputs as rows, which transformers saves as they lie in memory
        path = os.path.join(folder, "model.safetensors")
        stored = {name: x.transpose(1, 2).contiguous() if ".experts." in name else x for name, x in load_file(path).items()}
        save_file(stored, path, metadata={"format": "pt"})

    ids = tokens(case, config.get_text_config().vocab_size)
    values = logits(load(folder), ids)
    save_logits(os.path.join(folder, "logits.safetensors"), ids, values)

    # How far rounding alone carries: the same in float64 (norms and softmax stay float32 inside transformers).
    rounding = (logits(load(folder).double(), ids) - values).abs().max().item()
    moved = []
    for change in wrong:
        other = (logits(load(folder, changed(folder, change)), ids) - values).abs().max().item()
        moved.append(other)
        if other < NOTICE:
            sys.exit(f"{case}: {change} changes the logits by {other} only")
    if old:
        path = os.path.join(folder, "config.v4.json")
        spelled = old_spelling(read_json(os.path.join(folder, "config.json")))
        write_json(path, spelled)
        again = AutoConfig.from_pretrained(path)
        other = (logits(load(folder, again), ids) - values).abs().max().item()
        if other != 0:
            sys.exit(f"{case}: the old spelling of the configuration changes the logits by {other}")
    report(case, values, f"rounding {rounding:.1e}  least change by a wrong configuration {min(moved, default=float('nan')):.2f}")


def rope(kind, theta, **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


def plain_rope(r):
    return {"rope_type": "default", "rope_theta": r["rope_theta"]}


def without(*keys):
    return lambda r: {k: v for k, v in r.items() if k not in keys}


def with_(**more):
    return lambda r: {**r, **more}


# 4 query heads, 2 key-value heads; heads x head_dim (32) is not the hidden size (24)
SMALL = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=48,
             max_position_embeddings=64, rms_norm_eps=1e-3, bos_token_id=None, eos_token_id=None, pad_token_id=None)
EPS = {"rms_norm_eps": 1e-2}
THETA = {"rope_parameters": with_(rope_theta=40.0)}


def small(**changes):
    return {**SMALL, **changes}


model_case("llama", "Llama", **small(head_dim=8, rope_parameters=rope("default", 500.0)), wrong=[EPS, THETA])
model_case("llama_bias", "Llama", **small(attention_bias=True, mlp_bias=True, intermediate_size=36, rope_parameters=rope("default", 500.0)),
           wrong=[{"attention_bias": False}, {"mlp_bias": False}])
model_case("llama_tied", "Llama", **small(head_dim=10, num_key_value_heads=1, vocab_size=51, tie_word_embeddings=True, hidden_act="gelu",
           rope_parameters=rope("default", 10000.0)), wrong=[{"hidden_act": "silu"}, EPS])
model_case("llama_rope_linear", "Llama", **small(head_dim=8, rope_parameters=rope("linear", 500.0, factor=4.0)), wrong=[{"rope_parameters": plain_rope}])
# wavelengths on both sides of the two limits, and one between them
model_case("llama_rope_llama3", "Llama", **small(head_dim=12, rope_parameters=rope("llama3", 10000.0, factor=8.0, low_freq_factor=1.0,
           high_freq_factor=4.0, original_max_position_embeddings=32)),
           wrong=[{"rope_parameters": plain_rope}, {"rope_parameters": with_(original_max_position_embeddings=16)},
                  {"rope_parameters": with_(low_freq_factor=2.0)}, {"rope_parameters": with_(high_freq_factor=6.0)}])
# a ramp over several frequencies; the attention factor follows from `factor`
YARN = rope("yarn", 50.0, factor=4.0, original_max_position_embeddings=16, beta_fast=2.0, beta_slow=0.25)
model_case("llama_rope_yarn", "Llama", **small(head_dim=16, rope_parameters=YARN),
           wrong=[{"rope_parameters": plain_rope}, {"rope_parameters": with_(attention_factor=1.0)}, {"rope_parameters": with_(beta_fast=1.0)},
                  {"rope_parameters": with_(beta_slow=1.0)}, {"rope_parameters": with_(original_max_position_embeddings=64)}])
model_case("llama_rope_yarn_mscale", "Llama", **small(head_dim=16, rope_parameters={**YARN, "mscale": 1.5, "mscale_all_dim": 0.5, "truncate": False}),
           wrong=[{"rope_parameters": with_(truncate=True)}, {"rope_parameters": without("mscale", "mscale_all_dim")}])
model_case("llama_rope_dynamic", "Llama", **small(head_dim=8, max_position_embeddings=16, rope_parameters=rope("dynamic", 500.0, factor=3.0)),
           wrong=[{"rope_parameters": plain_rope}, {"max_position_embeddings": 20}])
model_case("mistral", "Mistral", **small(head_dim=8, num_key_value_heads=1, sliding_window=6, rope_parameters=rope("default", 500.0)),
           wrong=[{"sliding_window": None}, {"sliding_window": 5}, {"sliding_window": 7}])
model_case("qwen2", "Qwen2", **small(rope_parameters=rope("default", 1000.0)), wrong=[THETA, EPS])
model_case("qwen2_window", "Qwen2", **small(num_hidden_layers=3, use_sliding_window=True, sliding_window=5, max_window_layers=2, tie_word_embeddings=True,
           rope_parameters=rope("default", 1000.0)),
           wrong=[{"layer_types": ["full_attention"] * 3}, {"layer_types": ["sliding_attention"] * 3},
                  {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}, {"sliding_window": 6}])
model_case("qwen3", "Qwen3", **small(head_dim=12, tie_word_embeddings=True, rope_parameters=rope("default", 1000.0)), wrong=[THETA, EPS])
model_case("gemma2", "Gemma2", **small(num_hidden_layers=3, head_dim=8, sliding_window=6, query_pre_attn_scalar=5, attn_logit_softcapping=3.0,
           final_logit_softcapping=5.0, rope_parameters=rope("default", 1000.0)),
           wrong=[{"sliding_window": 7}, {"query_pre_attn_scalar": 8}, {"attn_logit_softcapping": None}, {"final_logit_softcapping": None},
                  {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, {"hidden_activation": "silu"}, EPS])
model_case("gemma3_text", "Gemma3Text", **small(num_hidden_layers=4, head_dim=8, num_key_value_heads=1, sliding_window=6, query_pre_attn_scalar=12,
           layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
           rope_parameters={"full_attention": rope("linear", 5000.0, factor=4.0), "sliding_attention": rope("default", 100.0)}),
           wrong=[{"sliding_window": 5}, {"query_pre_attn_scalar": 8}, {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
                  {"rope_parameters": lambda r: {**r, "full_attention": plain_rope(r["full_attention"])}},
                  {"rope_parameters": lambda r: {**r, "sliding_attention": rope("default", 5000.0)}},
                  {"rope_parameters": lambda r: {**r, "sliding_attention": rope("linear", 100.0, factor=4.0)}}])
model_case("phi3", "Phi3", **small(rope_parameters=rope("default", 500.0, partial_rotary_factor=0.67), hidden_size=32, sliding_window=7),
           wrong=[{"sliding_window": None}, {"rope_parameters": with_(partial_rotary_factor=1.0)}, {"rope_parameters": with_(partial_rotary_factor=0.5)}])
LONG = rope("longrope", 500.0, partial_rotary_factor=0.75, short_factor=[1.0, 1.25, 2.0], long_factor=[1.5, 3.0, 6.0])
for tag, original in (("", 16), ("_short", 32)):
    # 24 tokens are more than 16 (long factors) and no more than 32 (short factors)
    model_case("phi3_longrope" + tag, "Phi3", **small(hidden_size=32, original_max_position_embeddings=original, rope_parameters=LONG),
               wrong=[{"original_max_position_embeddings": 48 - original}, {"max_position_embeddings": original},
                      {"rope_parameters": lambda r: {**r, "rope_type": "default"}}])
model_case("gpt2", "GPT2", n_embd=24, n_layer=3, n_head=4, n_inner=56, n_positions=32, vocab_size=48, layer_norm_epsilon=1e-3, bos_token_id=None,
           eos_token_id=None, old=False, wrong=[{"layer_norm_epsilon": 1e-2}, {"activation_function": "relu"}, {"scale_attn_weights": False}])
model_case("mixtral", "Mixtral", **small(intermediate_size=20, num_local_experts=4, num_experts_per_tok=2, rope_parameters=rope("default", 500.0)),
           wrong=[{"num_experts_per_tok": 1}, {"num_experts_per_tok": 4}])
model_case("qwen3_moe", "Qwen3Moe", **small(num_hidden_layers=3, head_dim=8, moe_intermediate_size=16, num_experts=5, num_experts_per_tok=3,
           norm_topk_prob=True, mlp_only_layers=[1], rope_parameters=rope("default", 500.0)),
           wrong=[{"norm_topk_prob": False}, {"num_experts_per_tok": 2}])
model_case("qwen3_moe_raw", "Qwen3Moe", **small(head_dim=8, moe_intermediate_size=16, num_experts=5, num_experts_per_tok=2, norm_topk_prob=False,
           decoder_sparse_step=2, rope_parameters=rope("default", 500.0)), wrong=[{"norm_topk_prob": True}])
model_case("smollm3", "SmolLM3", **small(num_hidden_layers=4, hidden_size=32, no_rope_layers=[1, 0, 1, 1], tie_word_embeddings=True,
           rope_parameters=rope("default", 500.0)),
           wrong=[{"no_rope_layers": [1, 1, 1, 1]}, {"no_rope_layers": [0, 1, 0, 0]}, {"no_rope_layers": [1, 1, 1, 0]}])
model_case("olmo2", "Olmo2", **small(hidden_size=32, rope_parameters=rope("default", 500.0)), wrong=[THETA, EPS])
model_case("granite", "Granite", **small(hidden_size=32, embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.6, logits_scaling=1.7,
           tie_word_embeddings=True, rope_parameters=rope("default", 500.0)),
           wrong=[{"embedding_multiplier": 1.0}, {"attention_multiplier": 8**-0.5}, {"residual_multiplier": 1.0}, {"logits_scaling": 1.0}])



def narrow(**changes):
    return small(**{"intermediate_size": 28, **changes})


def norms(key, **changes):
    """Sizes of a family that calls the epsilon by another name, or does not have one (None)."""
    sizes = narrow(**changes)
    eps = sizes.pop("rms_norm_eps")
    return sizes if key is None else {key: eps, **sizes}


SEQUENTIAL, PARALLEL = {"use_parallel_residual": False}, {"use_parallel_residual": True}
SHARE = {"rope_parameters": with_(partial_rotary_factor=1.0)}
model_case("gemma", "Gemma", **narrow(head_dim=8, rope_parameters=rope("default", 500.0)), wrong=[THETA, {"rms_norm_eps": 1e-1}, {"hidden_act": "silu"}])
PHI = norms("layer_norm_eps", rope_parameters=rope("default", 500.0, partial_rotary_factor=0.67))
model_case("phi", "Phi", **PHI, wrong=[SHARE, {"layer_norm_eps": 1e-2}, {"hidden_act": "silu"}])
model_case("phi_norms", "Phi", **{**PHI, "qk_layernorm": True, "num_hidden_layers": 1}, wrong=[{"qk_layernorm": False}])
model_case("cohere", "Cohere", **norms("layer_norm_eps", logit_scale=0.7, rope_parameters=rope("default", 500.0)),
           wrong=[THETA, {"layer_norm_eps": 1e-2}, {"logit_scale": 1.0}])
model_case("cohere_norms", "Cohere", **norms("layer_norm_eps", logit_scale=0.7, use_qk_norm=True, attention_bias=True, num_hidden_layers=1,
           rope_parameters=rope("default", 500.0)), wrong=[{"use_qk_norm": False}, {"attention_bias": False}])
model_case("cohere2", "Cohere2", **norms("layer_norm_eps", num_hidden_layers=3, logit_scale=0.7, sliding_window=6, rope_parameters=rope("default", 500.0),
           layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
           wrong=[THETA, {"sliding_window": 7}, {"layer_types": ["sliding_attention"] * 3}])
for name in ("glm", "glm4"):
    model_case(name, name.capitalize(), **narrow(head_dim=8, rope_parameters=rope("default", 500.0, partial_rotary_factor=0.5)),
               wrong=[THETA, EPS, SHARE, {"attention_bias": False}])
model_case("starcoder2", "Starcoder2", **norms("norm_epsilon", sliding_window=7, rope_parameters=rope("default", 500.0)),
           wrong=[THETA, {"norm_epsilon": 1e-2}, {"sliding_window": 6}, {"use_bias": False}, {"hidden_act": "silu"}])
STABLE = norms("layer_norm_eps", rope_parameters=rope("default", 500.0, partial_rotary_factor=0.67))
model_case("stablelm", "StableLm", **STABLE, wrong=[SHARE, {"layer_norm_eps": 1e-2}, PARALLEL])
model_case("stablelm_parallel", "StableLm", **{**STABLE, "use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True},
           wrong=[SEQUENTIAL, {"qk_layernorm": False}, {"use_qkv_bias": False}])
NEOX = norms("layer_norm_eps", rope_parameters=rope("default", 500.0, partial_rotary_factor=0.67))
del NEOX["num_key_value_heads"]
model_case("gpt_neox", "GPTNeoX", **NEOX, wrong=[SEQUENTIAL, SHARE, {"layer_norm_eps": 1e-2}, {"hidden_act": "silu"}, {"attention_bias": False}])
model_case("gpt_neox_sequential", "GPTNeoX", **{**NEOX, "use_parallel_residual": False}, wrong=[PARALLEL])
FALCON = norms("layer_norm_epsilon", rope_parameters=rope("default", 500.0))
for key in ("num_key_value_heads", "intermediate_size"):
    del FALCON[key]
model_case("falcon", "Falcon", **{**FALCON, "num_hidden_layers": 1}, wrong=[THETA, {"layer_norm_epsilon": 1e-2}])
model_case("falcon_new", "Falcon", **FALCON, new_decoder_architecture=True, num_kv_heads=2, bias=True, ffn_hidden_size=28, wrong=[THETA, {"bias": False}])
model_case("falcon_new_one_norm", "Falcon", **{**FALCON, "num_hidden_layers": 1}, new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=28,
           num_ln_in_parallel_attn=1, wrong=[THETA])
model_case("falcon_sequential", "Falcon", **FALCON, multi_query=False, parallel_attn=False, ffn_hidden_size=28, wrong=[THETA])
model_case("olmo", "Olmo", **norms(None, clip_qkv=0.8, rope_parameters=rope("default", 500.0)), wrong=[THETA, {"clip_qkv": None}])
model_case("olmo_unclipped", "Olmo", **norms(None, num_hidden_layers=1, rope_parameters=rope("default", 500.0)), wrong=[THETA])
# theta is the default: of version 4's, transformers 5 gives any other to the layers without a window only
model_case("olmo3", "Olmo3", **narrow(num_hidden_layers=3, sliding_window=6,
           layer_types=["sliding_attention", "full_attention", "sliding_attention"],
           rope_parameters={"full_attention": rope("linear", 500000.0, factor=4.0), "sliding_attention": rope("default", 500000.0)}),
           wrong=[EPS, {"sliding_window": 7}, {"layer_types": ["sliding_attention"] * 3},
                  {"rope_parameters": lambda r: {**r, "full_attention": r["sliding_attention"]}},
                  {"rope_parameters": lambda r: {**r, "sliding_attention": r["full_attention"]}}])
EXAONE = narrow(rope_parameters=rope("default", 500.0))
model_case("exaone4", "Exaone4", **{**EXAONE, "num_hidden_layers": 3}, sliding_window=6,
           layer_types=["sliding_attention", "full_attention", "sliding_attention"],
           wrong=[EPS, THETA, {"sliding_window": 7}, {"layer_types": ["sliding_attention"] * 3}])
model_case("exaone4_full", "Exaone4", **EXAONE, sliding_window=None, layer_types=["full_attention"] * 2, wrong=[THETA])
model_case("ernie4_5", "Ernie4_5", **narrow(head_dim=8, use_bias=True, rope_parameters=rope("default", 500.0)), wrong=[EPS, THETA, {"use_bias": False}])
model_case("hunyuan", "HunYuanDenseV1", **narrow(head_dim=8, rope_parameters=rope("dynamic", 100.0, alpha=50.0, factor=1.0)),
           wrong=[EPS, {"rope_parameters": with_(alpha=5.0)}])
model_case("seed_oss", "SeedOss", **narrow(head_dim=8, rope_parameters=rope("default", 500.0)), wrong=[EPS, THETA, {"attention_bias": False}])
GROWS = rope("yarn", 50.0, factor=4.0, original_max_position_embeddings=8, beta_fast=2.0, beta_slow=0.25, mscale=1.0, mscale_all_dim=1.0,
             llama_4_scaling_beta=0.5)
model_case("ministral3", "Ministral3", **narrow(head_dim=8, rope_parameters=GROWS), old=False,
           wrong=[EPS, THETA, {"rope_parameters": with_(llama_4_scaling_beta=0.1)}, {"rope_parameters": with_(original_max_position_embeddings=16)}])
model_case("nemotron", "Nemotron", **norms("norm_eps", rope_parameters=rope("default", 500.0, partial_rotary_factor=0.67)),
           wrong=[SHARE, THETA, {"norm_eps": 1e-2}, {"hidden_act": "relu"}])
GEMMA4 = narrow(num_hidden_layers=2, head_dim=8, num_key_value_heads=4, sliding_window=6, global_head_dim=12, hidden_size_per_layer_input=0,
                final_logit_softcapping=8.0, layer_types=["sliding_attention", "full_attention"],
                rope_parameters={"full_attention": rope("proportional", 500.0, partial_rotary_factor=0.4), "sliding_attention": rope("default", 100.0)})
model_case("gemma4_text", "Gemma4Text", **GEMMA4, attention_k_eq_v=True, num_global_key_value_heads=2,
           wrong=[EPS, {"sliding_window": 7}, {"final_logit_softcapping": None},
                  {"rope_parameters": lambda r: {**r, "full_attention": rope("default", 500.0)}},
                  {"rope_parameters": lambda r: {**r, "sliding_attention": rope("default", 500.0)}}])
model_case("gemma4_values", "Gemma4Text", **{**GEMMA4, "num_key_value_heads": 2, "num_hidden_layers": 1, "layer_types": ["full_attention"]}, wrong=[EPS])
# As the small models are: an embedding for each layer, and last layers that see the keys and values of the last one of their kind before them.
model_case("gemma4_small", "Gemma4Text", **{**GEMMA4, "num_hidden_layers": 5, "num_key_value_heads": 2, "hidden_size_per_layer_input": 6,
           "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
           vocab_size_per_layer_input=SMALL["vocab_size"], num_kv_shared_layers=2, use_double_wide_mlp=True,
           wrong=[EPS, {"sliding_window": 7}, {"hidden_activation": "relu"}])
model_case("gemma4_experts", "Gemma4Text", **{**GEMMA4, "num_key_value_heads": 2}, enable_moe_block=True, num_experts=5, top_k_experts=2,
           moe_intermediate_size=12, wrong=[EPS, {"top_k_experts": 1}, {"hidden_activation": "relu"}])
model_case("gemma3n", "Gemma3nText", **{**GEMMA4, "num_hidden_layers": 5, "num_key_value_heads": 2, "hidden_size_per_layer_input": 6, "global_head_dim": None,
           "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
           "intermediate_size": [28, 28, 28, 20, 28],
           "rope_parameters": {"full_attention": rope("default", 500.0), "sliding_attention": rope("default", 100.0)}},
           vocab_size_per_layer_input=40, num_kv_shared_layers=2, altup_num_inputs=3, altup_active_idx=1, laurel_rank=5,
           activation_sparsity_pattern=[0.8, 0.0, 0.0, 0.3, 0.0],
           wrong=[EPS, {"sliding_window": 7}, {"altup_correct_scale": False}, {"altup_active_idx": 0}, {"activation_sparsity_pattern": [0.0] * 5},
                  {"final_logit_softcapping": 30.0}, {"rope_parameters": lambda r: {**r, "full_attention": r["sliding_attention"]}}])
model_case("lfm2", "Lfm2", **norms("norm_eps", num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False,
           rope_parameters=rope("default", 500.0)), wrong=[THETA, {"norm_eps": 1e-2}])
model_case("lfm2_bias", "Lfm2", **norms("norm_eps", num_hidden_layers=1, layer_types=["conv"], conv_bias=True, conv_L_cache=4, intermediate_size=20,
           block_multiple_of=8, block_ffn_dim_multiplier=1.7, rope_parameters=rope("default", 500.0)), wrong=[{"conv_bias": False}])
model_case("lfm2_moe", "Lfm2Moe", **norms("norm_eps", num_hidden_layers=4, layer_types=["conv", "full_attention", "conv", "full_attention"], num_dense_layers=1,
           moe_intermediate_size=12, num_experts=5, num_experts_per_tok=2, routed_scaling_factor=1.7, rope_parameters=rope("default", 500.0)), dtype=BF16,
           wrong=[THETA, {"norm_eps": 1e-2}, {"num_experts_per_tok": 1}, {"norm_topk_prob": False}, {"routed_scaling_factor": 1.0}])
model_case("arcee", "Arcee", **small(rope_parameters=rope("default", 500.0)), wrong=[THETA, EPS, {"hidden_act": "silu"}])
model_case("gpt_bigcode", "GPTBigCode", n_embd=24, n_layer=3, n_head=4, n_inner=56, n_positions=32, vocab_size=48, layer_norm_epsilon=1e-3, bos_token_id=None,
           eos_token_id=None, old=False, wrong=[{"layer_norm_epsilon": 1e-2}, {"activation_function": "relu"}, {"scale_attn_weights": False}])


# Language models among other towers: text only, so the towers may be as small as can be.


def part(kind, **sizes):
    return lambda: getattr(transformers, kind + "Config")(**sizes)


CLIP = part("CLIPVision", hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4, projection_dim=4)
MULTI = rope("default", 500.0, mrope_section=[1, 1, 1])
model_case("llava", "Llava", vision_config=CLIP, text_config=part("Llama", **narrow(head_dim=8, rope_parameters=rope("default", 500.0))), wrong=[THETA, EPS])
model_case("llava_qwen2", "LlavaOnevision", vision_config=part("SiglipVision", hidden_size=4, intermediate_size=4, num_hidden_layers=1,
           num_attention_heads=1, image_size=8, patch_size=4), text_config=part("Qwen2", **narrow(tie_word_embeddings=True, rope_parameters=rope("default", 500.0))),
           wrong=[THETA, EPS])
model_case("idefics3", "Idefics3", vision_config=part("Idefics3Vision", hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
           image_size=8, patch_size=4), text_config=part("Llama", **narrow(rope_parameters=rope("default", 500.0))), wrong=[THETA, EPS])
model_case("mistral3", "Mistral3", vision_config=part("PixtralVision", hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
           image_size=8, patch_size=4), text_config=part("Ministral3", **narrow(head_dim=8, rope_parameters=GROWS)), old=False, wrong=[THETA, EPS])
model_case("gemma3", "Gemma3", vision_config=part("SiglipVision", hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
           image_size=8, patch_size=4), mm_tokens_per_image=1, text_config=part("Gemma3Text", **narrow(head_dim=8, sliding_window=6,
           layer_types=["sliding_attention", "full_attention"], rope_parameters={"full_attention": rope("default", 5000.0),
           "sliding_attention": rope("default", 100.0)})), old=False, wrong=[{"sliding_window": 7}])
QWEN_VISION = dict(depth=1, hidden_size=4, num_heads=1, patch_size=2, in_channels=1)
model_case("qwen2_vl", "Qwen2VL", vision_config=part("Qwen2VLVision", **{**QWEN_VISION, "hidden_size": 24}, embed_dim=4, mlp_ratio=1),
           text_config=part("Qwen2VLText", **narrow(rope_parameters=MULTI)), wrong=[THETA, EPS])
model_case("qwen2_5_vl", "Qwen2_5_VL", vision_config=part("Qwen2_5_VLVision", **QWEN_VISION, intermediate_size=4, out_hidden_size=24,
           fullatt_block_indexes=[0]), text_config=part("Qwen2_5_VLText", **narrow(rope_parameters=MULTI)), wrong=[THETA, EPS])
model_case("qwen3_vl", "Qwen3VL", vision_config=part("Qwen3VLVision", **QWEN_VISION, intermediate_size=4, out_hidden_size=24, num_position_embeddings=4,
           deepstack_visual_indexes=[0]), text_config=part("Qwen3VLText", **narrow(head_dim=8, rope_parameters={**MULTI, "mrope_section": [1, 1, 2]})), wrong=[THETA, EPS])
# Mixtures, stored as bfloat16 to be small.


def mixture(**changes):
    return small(**{"hidden_size": 24, "vocab_size": 40, "head_dim": 8, "rope_parameters": rope("default", 500.0), **changes})


PER_TOKEN = {"num_experts_per_tok": 1}
model_case("gpt_oss", "GptOss", **mixture(intermediate_size=14, num_local_experts=4, num_experts_per_tok=2, sliding_window=6, swiglu_limit=0.7,
           layer_types=["full_attention", "sliding_attention"], rope_parameters={**YARN, "truncate": False}), dtype=BF16,
           wrong=[{"swiglu_limit": 7.0}, {"swiglu_alpha": 1.0}, {"sliding_window": 7}, {"layer_types": ["sliding_attention", "full_attention"]}, PER_TOKEN])
model_case("qwen2_moe", "Qwen2Moe", **small(vocab_size=40, num_hidden_layers=3, intermediate_size=28, moe_intermediate_size=12, shared_expert_intermediate_size=20,
           num_experts=5, num_experts_per_tok=2, mlp_only_layers=[1], use_sliding_window=True, sliding_window=6, max_window_layers=2,
           rope_parameters=rope("default", 500.0)), dtype=BF16,
           wrong=[{"norm_topk_prob": True}, PER_TOKEN, {"sliding_window": 7}, {"layer_types": ["full_attention"] * 3},
                  {"layer_types": ["sliding_attention"] * 3}])
for name in ("qwen3_vl_moe", "qwen3_vl_moe_published"):
    model_case(name, "Qwen3VLMoe", vision_config=part("Qwen3VLMoeVision", **QWEN_VISION, intermediate_size=4, out_hidden_size=24, num_position_embeddings=4,
               deepstack_visual_indexes=[0]), text_config=part("Qwen3VLMoeText", **narrow(vocab_size=40, head_dim=8, moe_intermediate_size=20, num_experts=5,
               num_experts_per_tok=2, rope_parameters={**MULTI, "mrope_section": [1, 1, 2]})), old=False, dtype=BF16, wrong=[THETA, PER_TOKEN])
model_case("olmoe", "Olmoe", **small(vocab_size=40, intermediate_size=12, num_experts=5, num_experts_per_tok=3, clip_qkv=0.8,
           rope_parameters=rope("default", 500.0)), dtype=BF16, wrong=[{"norm_topk_prob": True}, PER_TOKEN, {"clip_qkv": None}])
LATENT = small(vocab_size=40, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3, intermediate_size=28, moe_intermediate_size=8, kv_lora_rank=10,
               qk_nope_head_dim=6, qk_rope_head_dim=8, v_head_dim=5, n_routed_experts=6, num_experts_per_tok=2, first_k_dense_replace=1)
model_case("deepseek_v3", "DeepseekV3", **{**LATENT, "q_lora_rank": 12, "n_group": 3, "topk_group": 2, "n_shared_experts": 2, "routed_scaling_factor": 1.7,
           "rope_parameters": {**YARN, "mscale": 1.5, "mscale_all_dim": 0.7}}, dtype=BF16,
           wrong=[{"n_group": 1, "topk_group": 1}, {"topk_group": 1}, {"norm_topk_prob": False}, {"routed_scaling_factor": 1.0}, PER_TOKEN,
                  {"rope_interleave": False}, {"rope_parameters": without("mscale", "mscale_all_dim")}])
model_case("deepseek_v3_plain", "DeepseekV3", **{**LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "norm_topk_prob": False,
           "rope_interleave": False, "attention_bias": True, "rope_parameters": rope("default", 500.0)}, dtype=BF16,
           wrong=[{"rope_interleave": True}, {"norm_topk_prob": True}, THETA, {"attention_bias": False}])
model_case("deepseek_v2", "DeepseekV2", **{**LATENT, "q_lora_rank": 12, "n_group": 3, "topk_group": 1, "topk_method": "group_limited_greedy", "n_shared_experts": 1,
           "routed_scaling_factor": 1.7, "rope_parameters": rope("default", 500.0)}, dtype=BF16,
           wrong=[{"topk_method": "greedy"}, {"topk_group": 3}, {"routed_scaling_factor": 1.0}, THETA])
model_case("deepseek_v2_greedy", "DeepseekV2", **{**LATENT, "q_lora_rank": None, "n_shared_experts": 1, "topk_method": "greedy",
           "rope_parameters": rope("default", 500.0)}, dtype=BF16, wrong=[PER_TOKEN, THETA])
model_case("glm4_moe_lite", "Glm4MoeLite", **{**LATENT, "q_lora_rank": 12, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "routed_scaling_factor": 1.7,
           "mlp_layer_types": ["dense", "sparse", "sparse"], "num_hidden_layers": 3, "rope_parameters": rope("default", 500.0)}, dtype=BF16,
           wrong=[{"norm_topk_prob": False}, {"routed_scaling_factor": 1.0}, PER_TOKEN, THETA])
model_case("glm4_moe", "Glm4Moe", **mixture(num_attention_heads=3, num_key_value_heads=1, intermediate_size=28, moe_intermediate_size=8, n_routed_experts=6,
           num_experts_per_tok=2, n_shared_experts=2, first_k_dense_replace=1, use_qk_norm=True, attention_bias=True, routed_scaling_factor=1.4,
           rope_parameters=rope("default", 500.0, partial_rotary_factor=0.5)), dtype=BF16,
           wrong=[{"norm_topk_prob": False}, {"routed_scaling_factor": 1.0}, PER_TOKEN, {"rope_parameters": with_(partial_rotary_factor=1.0)}])
model_case("ernie4_5_moe", "Ernie4_5_Moe", **mixture(num_hidden_layers=3, intermediate_size=28, moe_intermediate_size=8, moe_num_experts=5, moe_k=2,
           moe_num_shared_experts=2, moe_layer_start_index=1, moe_layer_end_index=1, use_bias=True, moe_norm_min=0.9), dtype=BF16,
           wrong=[{"moe_k": 1}, {"moe_norm_min": 1e-12}, THETA])
model_case("hunyuan_moe", "HunYuanMoEV1", **mixture(intermediate_size=12, num_experts=5, moe_topk=[2, 2], num_shared_expert=1, moe_intermediate_size=12,
           rope_parameters=rope("dynamic", 100.0, alpha=50.0, factor=1.0)), dtype=BF16,
           wrong=[{"moe_topk": [1, 1]}, {"rope_parameters": with_(alpha=5.0)}])
model_case("phimoe", "Phimoe", **small(vocab_size=40, intermediate_size=12, num_local_experts=4, num_experts_per_tok=2, router_jitter_noise=0.3, sliding_window=7,
           attention_bias=True, rope_parameters=rope("default", 500.0)), dtype=BF16,
           wrong=[{"router_jitter_noise": 0.01}, {"sliding_window": None}])
PHI_LONG = {**LONG, "short_mscale": 1.3, "long_mscale": 1.3, "original_max_position_embeddings": 32}
del PHI_LONG["partial_rotary_factor"]
model_case("phimoe_longrope", "Phimoe", **small(vocab_size=40, intermediate_size=12, num_local_experts=4, num_experts_per_tok=2,
           rope_parameters=PHI_LONG), old=False, dtype=BF16, wrong=[{"rope_parameters": with_(short_mscale=1.0)}])
model_case("granitemoe", "GraniteMoe", **small(vocab_size=40, intermediate_size=12, num_local_experts=4, num_experts_per_tok=2, embedding_multiplier=3.0,
           attention_multiplier=0.2, residual_multiplier=0.6, logits_scaling=1.7, rope_parameters=rope("default", 500.0)), dtype=BF16,
           wrong=[{"embedding_multiplier": 1.0}, PER_TOKEN, {"residual_multiplier": 1.0}])
GRANITE4 = small(vocab_size=40, intermediate_size=12, shared_intermediate_size=20, layer_types=["attention"] * 2, embedding_multiplier=3.0,
                 attention_multiplier=0.2, residual_multiplier=0.6, logits_scaling=1.7, mamba_n_heads=4, mamba_expand=2,
                 rope_parameters=rope("default", 500.0))
model_case("granitemoehybrid", "GraniteMoeHybrid", **GRANITE4, num_local_experts=0, num_experts_per_tok=0, position_embedding_type="rope",
           wrong=[{"position_embedding_type": None}, {"embedding_multiplier": 1.0}, THETA])
model_case("granitemoehybrid_mixture", "GraniteMoeHybrid", **GRANITE4, num_local_experts=4, num_experts_per_tok=2, dtype=BF16,
           wrong=[PER_TOKEN, {"position_embedding_type": "rope"}])
model_case("granitemoeshared", "GraniteMoeShared", **small(vocab_size=40, intermediate_size=12, num_local_experts=4, num_experts_per_tok=2,
           shared_intermediate_size=20, residual_multiplier=0.6, attention_multiplier=0.3, rope_parameters=rope("default", 500.0)), dtype=BF16,
           wrong=[PER_TOKEN, {"attention_multiplier": 1.0}])
model_case("minimax_m2", "MiniMaxM2", **mixture(intermediate_size=12, num_local_experts=5, num_experts_per_tok=2,
           rope_parameters=rope("default", 500.0, partial_rotary_factor=0.5)), dtype=BF16,
           wrong=[PER_TOKEN, {"rope_parameters": with_(partial_rotary_factor=1.0)}])
model_case("llama4_text", "Llama4Text", **mixture(num_hidden_layers=4, num_key_value_heads=1, intermediate_size=10, intermediate_size_mlp=20,
           num_local_experts=3, num_experts_per_tok=2, moe_layers=[1, 3], no_rope_layers=[1, 0, 1, 1], attention_chunk_size=7,
           floor_scale=3, attn_scale=0.5), dtype=BF16,
           wrong=[{"attention_chunk_size": 8}, {"attn_temperature_tuning": False}, {"floor_scale": 5}, {"use_qk_norm": False}, PER_TOKEN,
                  {"layer_types": ["full_attention"] * 4}, THETA])
DELTA = dict(num_hidden_layers=3, layer_types=["linear_attention", "full_attention", "linear_attention"], linear_num_key_heads=2, linear_num_value_heads=4,
             linear_key_head_dim=5, linear_value_head_dim=6, linear_conv_kernel_dim=4, rope_parameters=rope("default", 500.0, partial_rotary_factor=0.5))
model_case("qwen3_next", "Qwen3Next", **mixture(**DELTA, intermediate_size=20, moe_intermediate_size=8, shared_expert_intermediate_size=10, num_experts=4,
           num_experts_per_tok=2, mlp_only_layers=[0]), dtype=BF16, gain=1.0, wrong=[{"norm_topk_prob": False}, PER_TOKEN, EPS, THETA])
model_case("qwen3_5_text", "Qwen3_5Text", **mixture(**DELTA, intermediate_size=20), dtype=BF16, gain=1.0, wrong=[EPS, THETA])
model_case("qwen3_5_moe_text", "Qwen3_5MoeText", **mixture(**DELTA, moe_intermediate_size=8, shared_expert_intermediate_size=10, num_experts=4,
           num_experts_per_tok=2), dtype=BF16, gain=1.0, wrong=[PER_TOKEN, EPS, THETA])

# ---------------------------------------------------------------------------------------------------------------- quantized models

QUANTIZED = {}


def quantized_case(name, dtype, **how):
    QUANTIZED[name] = (dtype, how)


# Dimensions are multiples of 64, bitsandbytes' block; the MLP matrices have 320 blocks, so two blocks of doubly quantized scales.
WIDE = small(hidden_size=64, intermediate_size=320, head_dim=16, rope_parameters=rope("default", 500.0))
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
quantized_case("llama_nf4", F32, **NF4, bnb_4bit_compute_dtype=F32)
quantized_case("llama_nf4_bf16", BF16, **NF4, bnb_4bit_compute_dtype=BF16)
quantized_case("llama_int8", F32, load_in_8bit=True)


def decoded(folder):
    """A plain float32 model holding exactly the weights that a bitsandbytes checkpoint stands for.

    The checkpoint is loaded by transformers. Every 4-bit weight is decoded by bitsandbytes' `dequantize_4bit` with its own state, into the type the
    state names (float32 in llama_nf4, bfloat16 in llama_nf4_bf16, so there each weight is rounded to bfloat16); every 8-bit weight by
    `int8_vectorwise_dequant`, that is (float32(int8) * SCB[row]) * 7.874015718698502e-3, in float32. All others are taken as stored. Everything is
    then widened to float32, and all arithmetic of the model is float32: what bitsandbytes does to the activations (8-bit rounding, 16-bit
    matrix products) is no part of the logits.
    """
    import bitsandbytes as bnb

    config = AutoConfig.from_pretrained(folder)
    stored = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=config.dtype)
    weights = {}
    for name, p in stored.named_parameters():
        if isinstance(p, bnb.nn.Params4bit):
            p = bnb.functional.dequantize_4bit(p.data, p.quant_state)
        elif isinstance(p, bnb.nn.Int8Params):
            p = bnb.functional.int8_vectorwise_dequant(p.data, p.SCB)
        weights[name] = p.detach().float().clone()
    del config.quantization_config
    config.dtype = F32
    config._attn_implementation = "eager"
    model = transformers.LlamaForCausalLM(config).float()
    model.load_state_dict(weights, strict=True)
    return model.eval()


def make_quantized(case):
    dtype, how = QUANTIZED[case]
    folder = fresh(case)
    plain = os.path.join(folder, "plain")
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**WIDE)).float()
    randomize(model, case, 1.5)
    model.to(dtype).save_pretrained(plain)
    model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=BitsAndBytesConfig(**how), device_map="cpu", dtype=dtype)
    shutil.rmtree(plain)
    model.save_pretrained(folder)
    remove(folder, "generation_config.json")
    clean_config(os.path.join(folder, "config.json"), "_name_or_path")

    ids = tokens(case, WIDE["vocab_size"])
    values = logits(decoded(folder), ids)
    save_logits(os.path.join(folder, "logits.safetensors"), ids, values)
    report(case, values)


def clean_config(path, *keys):
    """No path of the machine that made it."""
    value = read_json(path)
    if any(value.get(key) for key in keys):
        for key in keys:
            value[key] = None
        write_json(path, value)


# ---------------------------------------------------------------------------------------------------------------- adapters

ADAPTERS = {}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapter_case(name, base, **how):
    how.setdefault("r", 4)
    how.setdefault("lora_alpha", 8)
    ADAPTERS[name] = (base, how)


adapter_case("llama_lora", "llama", target_modules=LINEAR)
adapter_case("llama_rslora_patterns", "llama", target_modules=LINEAR, use_rslora=True, rank_pattern={"q_proj": 2, r"layers.1.mlp.down_proj": 6},
             alpha_pattern={"v_proj": 3, r"layers.0.self_attn.q_proj": 5})
adapter_case("llama_dora", "llama", target_modules=LINEAR, use_dora=True)
adapter_case("llama_bias_lora", "llama_bias", target_modules=["q_proj", "v_proj", "down_proj"], bias="all", modules_to_save=["lm_head"])
adapter_case("llama_bias_lora_only", "llama_bias", target_modules=["k_proj", "o_proj", "up_proj"], bias="lora_only")
adapter_case("llama_embed_lora", "llama", target_modules=["embed_tokens", "lm_head", "q_proj"])
adapter_case("llama_tied_lora", "llama_tied", target_modules=["q_proj", "down_proj"], layers_to_transform=[1], layers_pattern="layers")
adapter_case("gpt2_lora", "gpt2", target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
adapter_case("phi3_lora", "phi3", target_modules="all-linear", task_type="CAUSAL_LM")
adapter_case("gemma2_lora", "gemma2", target_modules="all-linear", task_type="CAUSAL_LM")
for name in ("cohere", "gpt_neox", "falcon_new", "phi", "lfm2", "gemma4_small", "gemma3n"):
    adapter_case(name + "_lora", name, target_modules="all-linear", task_type="CAUSAL_LM")
for name in ("llava", "qwen2_vl"):
    adapter_case(name + "_lora", name, target_modules=r".*language_model.*(q_proj|o_proj|gate_proj|down_proj)")
adapter_case("llama_nf4_lora", "llama_nf4", target_modules=LINEAR)
adapter_case("llama_nf4_dora", "llama_nf4", target_modules=["q_proj", "o_proj", "up_proj"], use_dora=True)
adapter_case("mixtral_lora", "mixtral", target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
             target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
adapter_case("mixtral_expert_lora", "mixtral", target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
adapter_case("gemma4_experts_lora", "gemma4_experts", target_modules=r".*(q_proj|mlp\.down_proj|router\.proj)",
             target_parameters=["experts.gate_up_proj", "experts.down_proj"])
adapter_case("qwen3_moe_lora", "qwen3_moe", target_modules=LINEAR, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])


def randomize_adapter(model, case):
    """A and B N(0, 0.1^2); what else PEFT trains (magnitudes, biases, whole modules) is moved from its start.

    No larger: with 0.3 activations grow tenfold, and a change of every weight by half a unit in the last place moves logits by up to 8e-5, so
    float32 could not tell two orders of addition from a mistake of that size.
    """
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if not p.requires_grad:
                continue
            noise = torch.randn(p.shape, generator=generator(case, name)).to(p.dtype)
            if "magnitude" in name:
                p.mul_(1 + 0.2 * noise)
            elif "lora_" in name:
                p.copy_(0.1 * noise)
            else:
                p.add_(0.2 * noise)


def one_per_expert(folder, experts=4):
    """Rewrites a stacked Mixtral adapter as one LoRA per expert and matrix, the form in which adapters made with transformers 4 are found.

    A stack keeps the rows of A expert by expert (rank rows each); its B has the rank first and the expert second in its columns. w1 and w3 share the A
    of gate_up_proj and take the upper and the lower half of its B.
    """
    path = os.path.join(folder, "adapter_model.safetensors")
    tensors = load_file(path)
    for layer in range(2):
        stacked = f"base_model.model.model.layers.{layer}.mlp.experts"
        for wrapper, names in ((stacked + ".base_layer", ("w1", "w3")), (stacked, ("w2",))):
            a, b = tensors.pop(wrapper + ".lora_A.weight"), tensors.pop(wrapper + ".lora_B.weight")
            rank = a.shape[0] // experts
            for e in range(experts):
                for name, rows in zip(names, b.reshape(b.shape[0], rank, experts)[:, :, e].chunk(len(names))):
                    stem = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{e}.{name}"
                    tensors[stem + ".lora_A.weight"] = a[e * rank : (e + 1) * rank].clone()
                    tensors[stem + ".lora_B.weight"] = rows.clone()
    save_file(tensors, path, {"format": "pt"})
    path = os.path.join(folder, "adapter_config.json")
    config = read_json(path)
    config.update(target_modules=["q_proj", "w1", "w2", "w3"], target_parameters=None)
    write_json(path, config)


def make_adapter(case):
    base, how = ADAPTERS[case]
    folder = fresh(case)
    at = os.path.join(ROOT, base)
    if base in QUANTIZED:  # made on the quantized model, as in training
        trained = AutoModelForCausalLM.from_pretrained(at, device_map="cpu", dtype=QUANTIZED[base][0])
    else:
        trained = load(at)
    trained = get_peft_model(trained, LoraConfig(**how))
    randomize_adapter(trained, case)
    adapter = os.path.join(folder, "adapter")
    trained.save_pretrained(adapter)
    remove(adapter, "README.md")
    clean_config(os.path.join(adapter, "adapter_config.json"), "base_model_name_or_path")
    sort_lists(os.path.join(adapter, "adapter_config.json"))
    with open(os.path.join(folder, "base.txt"), "w") as f:
        f.write(base + "\n")

    # From the files: for a quantized base the float32 model of its decoded weights, with the adapter as it is.
    model = decoded(at) if base in QUANTIZED else load(at)
    ids = tokens(case, model.config.get_text_config().vocab_size)
    without_adapter = logits(model, ids)
    model = PeftModel.from_pretrained(model, adapter).float().eval()
    values = logits(model, ids)
    save_logits(os.path.join(folder, "apart.safetensors"), ids, values)
    merged = (logits(model.merge_and_unload(), ids) - values).abs().max().item()
    assert merged < 1e-3, f"{case}: merging changes the logits by {merged}"
    if case == "mixtral_expert_lora":
        one_per_expert(adapter)
        again = (logits(PeftModel.from_pretrained(load(at), adapter).eval(), ids) - values).abs().max().item()
        assert again < 1e-4, f"{case}: PEFT makes {again} of the form per expert"
    report(case, values, f"adapter changes {(values - without_adapter).abs().max():.2f}  merging in float32 {merged:.1e}")


def sort_lists(path):
    """PEFT keeps target_modules as a set, and writes it in a random order."""
    value = read_json(path)
    for key, entry in value.items():
        if isinstance(entry, list) and all(isinstance(x, str) for x in entry):
            value[key] = sorted(entry)
    write_json(path, value)


# ---------------------------------------------------------------------------------------------------------------- all of it


def main():
    global ROOT
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=os.path.join(here, "..", "tiny"))
    parser.add_argument("cases", nargs="*")
    args = parser.parse_args()
    ROOT = args.out
    makers = {**dict.fromkeys(MODELS, make_model), **dict.fromkeys(QUANTIZED, make_quantized), **dict.fromkeys(ADAPTERS, make_adapter)}
    for case in args.cases or makers:
        makers[case](case)


if __name__ == "__main__":
    main()
