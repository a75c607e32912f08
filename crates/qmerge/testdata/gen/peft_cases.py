"""Makes testdata/peft-cases: small models, adapters, and what PEFT's merge_and_unload makes of them.

    pip install peft==0.21.2 torch==2.15.0 transformers==5.23.0
    OMP_NUM_THREADS=1 python peft_cases.py ../peft-cases

Every case is a folder: base/ (model.safetensors, config.json) and adapter/ (as PEFT saves it). index.json holds type, shape and SHA-256 of every
tensor of the merged model as it is saved; `--keep` keeps the merged files too.
Dimensions are at least 16, so that B @ A takes the same path of the BLAS as in large models.
"""

import hashlib
import json
import os
import shutil
import sys
import warnings

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import torch
import transformers
from peft import LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
KEEP = "--keep" in sys.argv
ARGS = [a for a in sys.argv[1:] if a != "--keep"]
ROOT = ARGS[0] if ARGS else "../peft-cases"
ONLY = set(ARGS[1:])
BF, HF, FF = torch.bfloat16, torch.float16, torch.float32


def randomize(model, seed, sigma=0.05):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g) * sigma
            p.copy_((1 + noise if "norm" in name.lower() and p.ndim == 1 else noise).to(p.dtype))


def randomize_adapter(peft_model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in peft_model.named_parameters():
            if not p.requires_grad:
                continue
            noise = torch.randn(p.shape, generator=g)
            if "magnitude" in name:
                p.mul_(1 + 0.1 * noise)
            elif "lora_" in name:
                p.copy_((noise * 0.1).to(p.dtype))
            else:
                p.add_((noise * 0.02).to(p.dtype))


def clean(folder):
    for name in ("README.md", "generation_config.json"):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            os.remove(path)


def save_merged(model, folder, case):
    """transformers models are saved by their own method, others as a plain state dict."""
    out = os.path.join(folder, "merged.safetensors")
    if hasattr(model, "save_pretrained") and hasattr(model, "config") and hasattr(model.config, "model_type"):
        tmp = os.path.join(folder, "tmp")
        model.save_pretrained(tmp)
        shutil.move(os.path.join(tmp, "model.safetensors"), out)
        with open(os.path.join(tmp, "config.json")) as f:
            case["tie_word_embeddings"] = json.load(f).get("tie_word_embeddings")
        shutil.rmtree(tmp)
    else:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out, {"format": "pt"})


def digest(path):
    """Type, shape and hash of every tensor, from the file's own bytes."""
    with open(path, "rb") as f:
        raw = f.read()
    n = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n])
    header.pop("__metadata__", None)
    data = raw[8 + n :]
    return {
        name: {"dtype": t["dtype"], "shape": t["shape"], "sha256": hashlib.sha256(data[slice(*t["data_offsets"])]).hexdigest()}
        for name, t in sorted(header.items())
    }


CASES = []


def case(name, load, config, *, adapter_edit=None, save_kwargs=None, prepare=None, safe=False, rewrite=None):
    """adapter_edit changes the saved adapter before PEFT merges it, rewrite after: PEFT merges the one, qmerge must give the same for the other."""
    CASES.append((name, load, config, adapter_edit, save_kwargs or {}, prepare, safe, rewrite))


def run(name, load, config, adapter_edit, save_kwargs, prepare, safe, rewrite):
    torch.manual_seed(0)
    folder = os.path.join(ROOT, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(os.path.join(folder, "base"))
    base = os.path.join(folder, "base")
    adapter = os.path.join(folder, "adapter")
    model = load()
    default_save(model, base)
    clean(base)
    seed = sum(map(ord, name))
    reload = lambda: restore(load, base)
    model = reload()
    if prepare:
        prepare(model)
    peft_model = get_peft_model(model, config)
    randomize_adapter(peft_model, seed)
    peft_model.save_pretrained(adapter, **save_kwargs)
    clean(adapter)
    if adapter_edit:
        adapter_edit(adapter)
    model = reload()
    if prepare:
        prepare(model)
    info = {"name": name, "safe_merge": safe}
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=safe)
    save_merged(merged, folder, info)
    if rewrite:
        rewrite(adapter)
    out = os.path.join(folder, "merged.safetensors")
    info["tensors"] = digest(out)
    if not KEEP:
        os.remove(out)
    print("ok", name)
    return info


def default_save(model, folder):
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        save_file(model.state_dict(), os.path.join(folder, "model.safetensors"), {"format": "pt"})


def restore(load, folder):
    model = load()
    if hasattr(model, "save_pretrained"):
        return type(model).from_pretrained(folder, dtype=next(model.parameters()).dtype)
    model.load_state_dict(load_file(os.path.join(folder, "model.safetensors")))
    return model


# ------------------------------------------------------------------------------------------------ models

def llama(dtype=BF, tie=False, seed=1, vocab=48, **kw):
    def load():
        c = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=vocab, num_attention_heads=2, num_key_value_heads=1,
                                     intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=tie, **kw)
        m = transformers.LlamaForCausalLM(c).to(dtype)
        randomize(m, seed)
        return m
    return load


def gpt2(dtype=BF):
    def load():
        c = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=48, n_positions=32)
        m = transformers.GPT2LMHeadModel(c).to(dtype)
        randomize(m, 2)
        return m
    return load


class Convs(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.c1 = torch.nn.Conv1d(16, 24, 3)
        self.c2 = torch.nn.Conv2d(16, 24, (3, 2))
        self.p2 = torch.nn.Conv2d(24, 16, 1)
        self.c3 = torch.nn.Conv3d(16, 16, 2)
        self.to(dtype)

    def forward(self, x):
        return x


class Attention(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(32, 2)
        self.fc = torch.nn.Linear(32, 16)
        self.to(dtype)

    def forward(self, x):
        return x


def custom(kind, dtype):
    def load():
        m = kind(dtype)
        randomize(m, 3)
        return m
    return load


def mixtral(dtype=BF):
    c = transformers.MixtralConfig(hidden_size=32, num_hidden_layers=1, vocab_size=48, num_attention_heads=2, num_key_value_heads=1,
                                   intermediate_size=24, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=64)
    m = transformers.MixtralForCausalLM(c).to(dtype)
    randomize(m, 4)
    return m


def qwen2_moe(dtype=BF):
    c = transformers.Qwen2MoeConfig(hidden_size=32, num_hidden_layers=1, vocab_size=48, num_attention_heads=2, num_key_value_heads=1,
                                    intermediate_size=24, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=3,
                                    num_experts_per_tok=2, decoder_sparse_step=1, max_position_embeddings=64)
    m = transformers.Qwen2MoeForCausalLM(c).to(dtype)
    randomize(m, 5)
    return m


def nemotron_h():
    """Experts of two matrices each, in a layer that its file calls otherwise than the model in memory; a layer of attention."""
    c = transformers.NemotronHConfig(hidden_size=32, vocab_size=48, layers_block_type=["moe", "attention"], num_attention_heads=2, num_key_value_heads=1,
                                     head_dim=16, intermediate_size=24, moe_intermediate_size=16, moe_shared_expert_intermediate_size=16,
                                     n_routed_experts=3, num_experts_per_tok=2, mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8,
                                     max_position_embeddings=64)
    m = transformers.NemotronHForCausalLM(c).to(BF)
    # As it is loaded.
    m.model.layers[0].mixer.gate.float()
    randomize(m, 13)
    return m


def qwen3_moe():
    """Layer 1 is dense: its down_proj is an ordinary layer."""
    c = transformers.Qwen3MoeConfig(hidden_size=32, num_hidden_layers=2, vocab_size=48, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                                    intermediate_size=24, moe_intermediate_size=16, num_experts=3, num_experts_per_tok=2, mlp_only_layers=[1],
                                    max_position_embeddings=64)
    m = transformers.Qwen3MoeForCausalLM(c).to(BF)
    randomize(m, 11)
    return m


def gpt_oss(dtype=BF):
    c = transformers.GptOssConfig(hidden_size=32, num_hidden_layers=1, vocab_size=48, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                                  intermediate_size=32, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=64,
                                  layer_types=["full_attention"])
    m = transformers.GptOssForCausalLM(c).to(dtype)
    randomize(m, 6)
    return m


def lfm2_vl():
    """Experts under other names than most have, in the language model of a model that sees; layer 0 is dense."""
    text = dict(model_type="lfm2_moe", hidden_size=32, num_hidden_layers=2, vocab_size=48, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48,
                moe_intermediate_size=16, num_experts=3, num_experts_per_tok=2, num_dense_layers=1, layer_types=["conv", "full_attention"], max_position_embeddings=64)
    vision = dict(model_type="siglip2_vision_model", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, num_patches=16, patch_size=4)
    m = transformers.Lfm2VlForConditionalGeneration(transformers.Lfm2VlConfig(text_config=text, vision_config=vision, projector_hidden_size=16)).to(BF)
    # As it is loaded.
    m.model.language_model.layers[1].feed_forward.expert_bias = m.model.language_model.layers[1].feed_forward.expert_bias.float()
    randomize(m, 14)
    return m


def internvl():
    """The same of stacks with inputs as rows."""
    text = dict(model_type="gpt_oss", hidden_size=32, num_hidden_layers=1, vocab_size=48, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                intermediate_size=32, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=64, layer_types=["full_attention"])
    vision = dict(model_type="internvl_vision", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=[16, 16], patch_size=[8, 8])
    m = transformers.InternVLForConditionalGeneration(transformers.InternVLConfig(text_config=text, vision_config=vision)).to(BF)
    randomize(m, 15)
    return m


def granitemoe(dtype=BF):
    c = transformers.GraniteMoeConfig(hidden_size=32, num_hidden_layers=1, vocab_size=48, num_attention_heads=2, num_key_value_heads=1,
                                      intermediate_size=24, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=64)
    m = transformers.GraniteMoeForCausalLM(c).to(dtype)
    randomize(m, 7)
    return m


def llama4():
    c = transformers.Llama4TextConfig(hidden_size=32, num_hidden_layers=1, vocab_size=48, num_attention_heads=2, num_key_value_heads=1,
                                      intermediate_size=24, intermediate_size_mlp=32, num_local_experts=3, num_experts_per_tok=1, head_dim=16,
                                      max_position_embeddings=64, moe_layers=[0], layer_types=["full_attention"])
    m = transformers.Llama4ForCausalLM(c).to(BF)
    randomize(m, 8)
    return m


def llava():
    text = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=48, num_attention_heads=2, num_key_value_heads=1,
                                    intermediate_size=48, max_position_embeddings=64)
    vision = transformers.CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16,
                                           patch_size=8)
    c = transformers.LlavaConfig(vision_config=vision, text_config=text)
    m = transformers.LlavaForConditionalGeneration(c).to(BF)
    randomize(m, 9)
    return m


def classifier():
    c = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=48, num_attention_heads=2, num_key_value_heads=1,
                                 intermediate_size=48, max_position_embeddings=64, num_labels=3)
    m = transformers.LlamaForSequenceClassification(c).to(BF)
    randomize(m, 10)
    return m


def seeing(model_type, **sizes):
    """A classifier of images, whose layers transformers calls otherwise than its file does."""
    def load():
        config = transformers.AutoConfig.for_model(model_type, image_size=16, num_labels=3, **sizes)
        m = transformers.AutoModelForImageClassification.from_config(config).to(BF)
        randomize(m, 11)
        return m
    return load


vit = seeing("vit", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, patch_size=8)
dinov2 = seeing("dinov2", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, patch_size=8)
swin = seeing("swin", embed_dim=32, depths=[1, 1], num_heads=[2, 2], window_size=2, patch_size=4, mlp_ratio=2.0)
segformer = seeing("segformer", num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[32, 32], num_attention_heads=[2, 2], sr_ratios=[2, 1],
                   patch_sizes=[3, 3], strides=[2, 2], mlp_ratios=[2, 2], decoder_hidden_size=32)


def fused(model_type, cls="AutoModel", **sizes):
    """Layers that are rows of one tensor in its file."""
    def load():
        config = transformers.AutoConfig.for_model(model_type, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, **sizes)
        m = getattr(transformers, cls).from_config(config).to(BF)
        randomize(m, 12)
        return m
    return load


nomic_bert = fused("nomic_bert", vocab_size=48, intermediate_size=48, max_position_embeddings=64)
gte = fused("gte", vocab_size=48, intermediate_size=48, max_position_embeddings=64)
sarvam_moe = fused("sarvam_moe", "AutoModelForCausalLM", vocab_size=48, intermediate_size=48, moe_intermediate_size=16, num_key_value_heads=1,
                   head_dim=16, num_experts=3, num_experts_per_tok=1, first_k_dense_replace=1, n_group=1, topk_group=1, max_position_embeddings=64)
dinov2_giant = seeing("dinov2", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, patch_size=8, use_swiglu_ffn=True)


def lora(**kw):
    kw.setdefault("r", 4)
    kw.setdefault("lora_alpha", 8)
    return LoraConfig(init_lora_weights=kw.pop("init", False), **kw)


def rename_keys(change):
    def edit(folder):
        path = os.path.join(folder, "adapter_model.safetensors")
        save_file({change(k): v for k, v in load_file(path).items()}, path, {"format": "pt"})
    return edit


def per_expert(block, names, targets):
    """Replaces a stacked adapter by one LoRA per expert with its own random factors, as PEFT wrote them before transformers 5."""
    def edit(folder):
        path = os.path.join(folder, "adapter_model.safetensors")
        tensors = {k: v for k, v in load_file(path).items() if ".experts." not in k}
        g = torch.Generator().manual_seed(77)
        for e in range(3):
            for name, out, inp in names:
                stem = f"base_model.model.model.layers.0.{block}.experts.{e}.{name}"
                tensors[stem + ".lora_A.weight"] = torch.randn(4, inp, generator=g) * 0.1
                tensors[stem + ".lora_B.weight"] = torch.randn(out, 4, generator=g) * 0.1
        save_file(tensors, path, {"format": "pt"})
        path = os.path.join(folder, "adapter_config.json")
        config = json.load(open(path))
        config.update(target_modules=["q_proj"] + targets, target_parameters=None, rank_pattern={}, alpha_pattern={}, init_lora_weights=True)
        json.dump(config, open(path, "w"), indent=2, sort_keys=True)
    return edit


def split_stack(block, halves):
    """Cuts a stacked adapter into one LoRA per expert and projection, with the same factors."""
    def edit(folder):
        path = os.path.join(folder, "adapter_model.safetensors")
        tensors = load_file(path)
        stem = f"base_model.model.model.layers.0.{block}.experts"
        stacks = {"gate_up": stem + ".base_layer", "down": stem}
        for which, wrapper in stacks.items():
            a, b = tensors.pop(wrapper + ".lora_A.weight"), tensors.pop(wrapper + ".lora_B.weight")
            experts, rank = 3, a.shape[0] // 3
            for e in range(experts):
                ae, be = a[e * rank : (e + 1) * rank], b.reshape(b.shape[0], rank, experts)[:, :, e]
                parts = {"down_proj": be} if which == "down" else dict(zip(("gate_proj", "up_proj"), halves(be)))
                for name, rows in parts.items():
                    tensors[f"{stem}.{e}.{name}.lora_A.weight"] = ae.clone()
                    tensors[f"{stem}.{e}.{name}.lora_B.weight"] = rows.clone().contiguous()
        save_file(tensors, path, {"format": "pt"})
        path = os.path.join(folder, "adapter_config.json")
        config = json.load(open(path))
        config.update(target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"], target_parameters=None)
        json.dump(config, open(path, "w"), indent=2, sort_keys=True)
    return edit


# ------------------------------------------------------------------------------------------------ cases
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
for tag, dtype in (("bf16", BF), ("f16", HF), ("f32", FF)):
    case(f"plain-{tag}", llama(dtype), lora(target_modules=LINEAR))
    case(f"dora-{tag}", llama(dtype), lora(target_modules=LINEAR, use_dora=True))
case("rslora-bf16", llama(), lora(target_modules=LINEAR, use_rslora=True, lora_alpha=6))
case("rank-200-bf16", llama(), lora(r=200, target_modules=["q_proj"]))
case("lora-bias-bf16", llama(attention_bias=True), lora(target_modules=["q_proj", "o_proj"], lora_bias=True))
case("bias-all-bf16", llama(attention_bias=True), lora(target_modules=["q_proj"], bias="all"))
case("bias-lora-only-bf16", llama(attention_bias=True), lora(target_modules=["q_proj"], bias="lora_only"))
case("bin-bf16", llama(), lora(target_modules=["q_proj", "v_proj"]), save_kwargs={"safe_serialization": False})
for tag, dtype in (("bf16", BF), ("f32", FF)):
    case(f"embedding-{tag}", llama(dtype), lora(target_modules=["embed_tokens", "q_proj"]))
    case(f"embedding-dora-{tag}", llama(dtype), lora(target_modules=["embed_tokens"], use_dora=True))
    case(f"gpt2-{tag}", gpt2(dtype), lora(target_modules=["c_attn", "c_proj", "c_fc"]))
    case(f"gpt2-dora-{tag}", gpt2(dtype), lora(target_modules=["c_attn", "c_proj", "c_fc"], use_dora=True))
    case(f"conv-{tag}", custom(Convs, dtype), lora(target_modules=["c1", "c2", "p2", "c3"]))
    case(f"conv-dora-{tag}", custom(Convs, dtype), lora(target_modules=["c1", "c2", "p2", "c3"], use_dora=True))
case("mha-f32", custom(Attention, FF), lora(target_modules=["attn", "fc"]))
case("mha-output-f32", custom(Attention, FF), lora(target_modules=["attn.out_proj", "fc"]))
case("mica-bf16", llama(), lora(target_modules=["q_proj"], init="mica"))
case("mixtral-parameters", mixtral, lora(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]))
case("mixtral-down-only", mixtral, lora(target_modules=[], target_parameters=["mlp.experts.down_proj"]))
case("nemotron-h-parameters", nemotron_h, lora(target_modules=["q_proj"], target_parameters=["mixer.experts.up_proj", "mixer.experts.down_proj"]))
case("qwen2-moe-parameters", qwen2_moe, lora(target_modules=["q_proj", "shared_expert.up_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]))
# PEFT turns the names of an expert's matrices into those of the stacked parameters, without a path; and it passes over a name that no module has.
case("qwen3-moe-bare-names", qwen3_moe, lora(target_modules=LINEAR))
case("qwen3-moe-unmatched", qwen3_moe, lora(target_modules=["k_proj"], target_parameters=["mlp.experts.gate_up_proj", "experts.down_proj", "experts.w1", "down_proj"]))
case("gpt-oss-parameters", gpt_oss, lora(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]))
case("lfm2-vl-parameters", lfm2_vl, lora(target_modules=["q_proj"], target_parameters=["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]))
case("internvl-gpt-oss-parameters", internvl, lora(target_modules=["o_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]))
case("granitemoe-parameters", granitemoe, lora(target_modules=["q_proj"], target_parameters=["block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"]))
case("llama4-parameters", llama4, lora(target_modules=["q_proj"], target_parameters=["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]))
STACKS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
case("mixtral-per-expert-f32", lambda: mixtral(FF), lora(target_modules=["q_proj"], target_parameters=STACKS),
     adapter_edit=per_expert("block_sparse_moe", [("w1", 24, 32), ("w3", 24, 32), ("w2", 32, 24)], ["w1", "w2", "w3"]))
case("gpt-oss-per-expert-f32", lambda: gpt_oss(FF), lora(target_modules=["q_proj"], target_parameters=STACKS),
     rewrite=split_stack("mlp", lambda b: (b[0::2], b[1::2])))
case("granitemoe-per-expert-f32", lambda: granitemoe(FF), lora(target_modules=["q_proj"], target_parameters=[p.replace("mlp", "block_sparse_moe") for p in STACKS]),
     rewrite=split_stack("block_sparse_moe", lambda b: (b[: b.shape[0] // 2], b[b.shape[0] // 2 :])))
case("router-parameter", qwen2_moe, lora(target_modules=["q_proj"], target_parameters=["mlp.gate.weight"]))
case("tokens-list", llama(), lora(target_modules=["q_proj"], trainable_token_indices=[3, 7, 40]))
case("tokens-tied", llama(tie=True), lora(target_modules=["q_proj"], trainable_token_indices=[3, 7, 40]))
case("tokens-dict", llama(), lora(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [5, 2], "lm_head": [1]}))
case("tokens-only", llama(), TrainableTokensConfig(token_indices=[0, 9]))
case("tokens-only-tied", llama(tie=True), TrainableTokensConfig(token_indices=[0, 9]))
for tag, tie in (("", False), ("-tied", True)):
    case("tokens-resized" + tag, llama(tie=tie), lora(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 49, 51]}), prepare=lambda m: m.resize_token_embeddings(52))
case("save-head", llama(), lora(target_modules=["q_proj"], modules_to_save=["lm_head"]))
case("save-embed-tied", llama(tie=True), lora(target_modules=["q_proj"], modules_to_save=["embed_tokens"]))
case("save-both-tied-ensured", llama(tie=True), lora(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True))
# PEFT's flag ties what is called embed_tokens or lm_head alone: this embedding and its head part.
case("save-wte-tied-ensured", gpt2(), lora(target_modules=["c_attn"], modules_to_save=["wte"], ensure_weight_tying=True))
case("resized", llama(), lora(target_modules=["q_proj"]), prepare=lambda m: m.resize_token_embeddings(52))
case("resized-saved", llama(), lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]), prepare=lambda m: m.resize_token_embeddings(52))
case("resized-tied", llama(tie=True), lora(target_modules=["q_proj"]), prepare=lambda m: m.resize_token_embeddings(52))
case("resized-embedding-lora", llama(), lora(target_modules=["q_proj", "embed_tokens", "lm_head"]), prepare=lambda m: m.resize_token_embeddings(52))
case("classifier", classifier, lora(target_modules=["q_proj"], task_type="SEQ_CLS"))
case("llava-new-names", llava, lora(target_modules=r".*language_model.*(q_proj|up_proj)"))
case("llava-old-names", llava, lora(target_modules=r".*language_model.*(q_proj|up_proj)"),
     adapter_edit=rename_keys(lambda k: k.replace("base_model.model.model.language_model.", "base_model.model.language_model.model.")))
case("llava-vision", llava, lora(target_modules=r".*vision_tower.*(q_proj|fc1)"))
for name, load in (("dinov2", dinov2), ("segformer", segformer), ("swin", swin), ("vit", vit)):
    case(name, load, lora(target_modules=["q_proj", "v_proj", "o_proj", "fc1", "fc2"], modules_to_save=["classifier"]))
for name, load in (("gte", gte), ("nomic-bert", nomic_bert), ("sarvam-moe", sarvam_moe), ("dinov2-giant", dinov2_giant)):
    case(name, load, lora(target_modules=["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
case("nomic-bert-dora", nomic_bert, lora(target_modules=["k_proj", "v_proj"], use_dora=True))

if __name__ == "__main__":
    infos = []
    for c in CASES:
        if ONLY and c[0] not in ONLY:
            continue
        try:
            infos.append(run(*c))
        except Exception as e:  # a case that PEFT itself cannot do is worth knowing
            print("FAIL", c[0], type(e).__name__, str(e)[:300])
            shutil.rmtree(os.path.join(ROOT, c[0]), ignore_errors=True)
    index = os.path.join(ROOT, "index.json")
    if ONLY and os.path.exists(index):
        with open(index) as f:
            made = {info["name"]: info for info in json.load(f)["cases"] + infos}
        infos = [made[name] for name, *_ in CASES if name in made]
    if infos:
        json.dump({"peft": "0.21.2", "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "cases": infos},
                  open(index, "w"), indent=0, separators=(",", ":"))
