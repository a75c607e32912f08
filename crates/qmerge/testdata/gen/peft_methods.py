"""Makes testdata/peft-methods: adapters of PEFT's methods beside LoRA, what its merge_and_unload makes of them, and logits of the models not merged.

    pip install peft==0.21.2 torch==2.15.0 transformers==5.23.0
    OMP_NUM_THREADS=1 python peft_methods.py ../peft-methods [CASE...]

bases/NAME is a tiny model; CASE/base.txt names the one that a case is for. CASE/merged.safetensors holds the tensors of the merged model that differ from the
base's, and for models in f32 `logits` of TOKENS with the adapter kept apart. Nothing is taken from a published model.
"""

import json
import os
import shutil
import sys
import warnings

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import peft
import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
ROOT = sys.argv[1] if len(sys.argv) > 1 else "../peft-methods"
ONLY = set(sys.argv[2:])
TOKENS = [[1, 5, 2, 40, 7, 30, 11, 3]]


def randomize(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g) * 0.1
            p.copy_((1 + noise if ("norm" in name or "ln_" in name) and p.ndim == 1 else noise).to(p.dtype))
    return model


def llama(dtype):
    c = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=48, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                                 intermediate_size=48, max_position_embeddings=64, attention_bias=True)
    return randomize(transformers.LlamaForCausalLM(c), 1).to(dtype)


def gpt2(dtype):
    c = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=48, n_positions=32)
    return randomize(transformers.GPT2LMHeadModel(c), 2).to(dtype)


BASES = {"llama-f32": (llama, torch.float32), "llama-bf16": (llama, torch.bfloat16), "gpt2-f32": (gpt2, torch.float32)}


def open_base(name):
    kind = {"llama": transformers.LlamaForCausalLM, "gpt2": transformers.GPT2LMHeadModel}[name.split("-")[0]]
    return kind.from_pretrained(os.path.join(ROOT, "bases", name), dtype=BASES[name][1], attn_implementation="eager").eval()


def clean(folder):
    for name in ("README.md", "generation_config.json"):
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))


def saved(model):
    tmp = os.path.join(ROOT, "tmp")
    model.save_pretrained(tmp)
    tensors = load_file(os.path.join(tmp, "model.safetensors"))
    shutil.rmtree(tmp)
    return tensors


def config_edit(folder, **fields):
    path = os.path.join(folder, "adapter_config.json")
    config = {**json.load(open(path)), **fields}
    config["target_modules"] = sorted(config["target_modules"]) if isinstance(config.get("target_modules"), list) else config.get("target_modules")
    json.dump(config, open(path, "w"), indent=2, sort_keys=True)


def tensors_edit(folder, change):
    path = os.path.join(folder, "adapter_model.safetensors")
    save_file(change(load_file(path)), path, {"format": "pt"})


CASES = {}


def case(name, config, bases=("llama-f32", "llama-bf16"), edit=None, noise=0.1):
    for base in bases:
        CASES[f"{name}-{base}"] = (base, config, edit, noise)


def run(name, base, config, edit, noise):
    folder = os.path.join(ROOT, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    torch.manual_seed(0)
    model = get_peft_model(open_base(base), config())
    g = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_((torch.randn(p.shape, generator=g) * noise).to(p.dtype))
    adapter = os.path.join(folder, "adapter")
    model.save_pretrained(adapter)
    clean(adapter)
    config_edit(adapter, base_model_name_or_path=None)
    if edit:
        edit(adapter)
    model = PeftModel.from_pretrained(open_base(base), adapter).eval()
    out = {}
    if base.endswith("f32"):
        with torch.no_grad():
            out["logits"] = model(torch.tensor(TOKENS)).logits[0].contiguous()
    before = saved(open_base(base))
    after = saved(model.merge_and_unload())
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    out.update({k: v.contiguous() for k, v in after.items() if not torch.equal(v, before[k])})
    assert len(out) > 1 or not base.endswith("f32"), "nothing changed"
    save_file(out, os.path.join(folder, "merged.safetensors"), {"format": "pt"})
    with open(os.path.join(folder, "base.txt"), "w") as f:
        f.write(base + "\n")
    if "logits" in out:
        again = open_base(base)
        again.load_state_dict({**before, **{k: v for k, v in after.items()}}, strict=False)
        with torch.no_grad():
            away = (again(torch.tensor(TOKENS)).logits[0] - out["logits"]).abs().max().item()
            plain = (open_base(base)(torch.tensor(TOKENS)).logits[0] - out["logits"]).abs().max().item()
        print(f"ok {name}: {len(out) - 1} tensors, merged differs by {away:.1e}, no adapter by {plain:.1e}")
    else:
        print("ok", name, len(out))


# ------------------------------------------------------------------------------------------------ cases
LAYERS = ["k_proj", "up_proj", "down_proj"]
GPT2 = ("gpt2-f32",)
F32 = ("llama-f32",)
CONV1D = ["c_attn", "c_fc"]
case("ia3", lambda: peft.IA3Config(target_modules=LAYERS, feedforward_modules=["down_proj"]))
case("ia3", lambda: peft.IA3Config(target_modules=CONV1D, feedforward_modules=["c_fc"], fan_in_fan_out=True), GPT2)
case("loha", lambda: peft.LoHaConfig(target_modules=LAYERS, r=4, alpha=6, rank_pattern={"up_proj": 3}, alpha_pattern={"k_proj": 5}))
case("lokr", lambda: peft.LoKrConfig(target_modules=LAYERS, r=2, alpha=3))
case("lokr-full", lambda: peft.LoKrConfig(target_modules=LAYERS, r=16, alpha=8), F32)
case("lokr-both", lambda: peft.LoKrConfig(target_modules=LAYERS, r=1, alpha=2, decompose_both=True, decompose_factor=8), F32)


def pruned(folder):
    """What AdaLoRA leaves once it has spent its budget: fewer ranks in some layers, in one of them none."""
    keep = {"k_proj": [True, False, True, False], "up_proj": [False] * 4, "down_proj": [True] * 4}
    path = {"k_proj": "model.layers.0.self_attn.k_proj", "up_proj": "model.layers.0.mlp.up_proj", "down_proj": "model.layers.0.mlp.down_proj"}

    def change(tensors):
        for layer, mask in keep.items():
            stem = f"base_model.model.{path[layer]}."
            mask = torch.tensor(mask)
            for key in ("lora_A", "lora_E"):
                tensors[stem + key] = tensors[stem + key][mask].contiguous()
            tensors[stem + "lora_B"] = tensors[stem + "lora_B"][:, mask].contiguous()
        return tensors
    tensors_edit(folder, change)
    config_edit(folder, rank_pattern={path[layer] + ".lora_E": mask for layer, mask in keep.items()})


def adalora(targets, **kw):
    return lambda: peft.AdaLoraConfig(target_modules=targets, init_r=4, target_r=2, lora_alpha=6, total_step=10, **kw)


case("adalora", adalora(LAYERS), noise=0.3)
case("adalora", adalora(CONV1D, fan_in_fan_out=True), GPT2, noise=0.3)
case("adalora-pruned", adalora(LAYERS), F32, edit=pruned, noise=0.3)
case("oft", lambda: peft.OFTConfig(target_modules=LAYERS, oft_block_size=8))
case("oft-exact", lambda: peft.OFTConfig(target_modules=LAYERS, r=2, oft_block_size=0, use_cayley_neumann=False), F32)
case("oft-shared", lambda: peft.OFTConfig(target_modules=LAYERS, oft_block_size=16, block_share=True, num_cayley_neumann_terms=3), F32)
case("oft-constrained", lambda: peft.OFTConfig(target_modules=LAYERS, oft_block_size=8, coft=True, eps=0.8), F32)
case("oft-embedding", lambda: peft.OFTConfig(target_modules=["embed_tokens", "k_proj"], oft_block_size=16), F32)
case("boft", lambda: peft.BOFTConfig(target_modules=LAYERS, boft_block_size=8))


def butterfly():
    """PEFT does more than one factor with a kernel for CUDA only: here is what that kernel does."""
    from peft.tuners.boft import layer
    layer.get_fbd_cuda = lambda: True
    layer.FastBlockDiag.apply = staticmethod(lambda blocks: torch.stack([torch.block_diag(*factor) for factor in blocks]))
    return peft.BOFTConfig(target_modules=LAYERS, boft_block_size=4, boft_n_butterfly_factor=3)


case("boft-butterfly", butterfly, F32)
case("hra", lambda: peft.HRAConfig(target_modules=LAYERS, r=4))
case("hra-gs", lambda: peft.HRAConfig(target_modules=LAYERS, r=4, apply_GS=True), F32)
case("vera", lambda: peft.VeraConfig(target_modules=LAYERS, r=8))
case("vera", lambda: peft.VeraConfig(target_modules=CONV1D, r=8, fan_in_fan_out=True), GPT2)
case("vera-seed", lambda: peft.VeraConfig(target_modules=LAYERS, r=8, save_projection=False, projection_prng_key=7), F32)
case("pvera", lambda: peft.PveraConfig(target_modules=LAYERS, r=8))
case("pvera-seed", lambda: peft.PveraConfig(target_modules=LAYERS, r=8, save_projection=False, projection_prng_key=7), F32)
case("randlora", lambda: peft.RandLoraConfig(target_modules=LAYERS, r=12, randlora_alpha=24))
case("randlora-seed", lambda: peft.RandLoraConfig(target_modules=LAYERS, r=12, randlora_alpha=24, save_projection=False, projection_prng_key=3), F32)
case("randlora-sparse", lambda: peft.RandLoraConfig(target_modules=LAYERS, r=12, randlora_alpha=24, sparse=True, save_projection=False), F32)
case("fourierft", lambda: peft.FourierFTConfig(target_modules=LAYERS, n_frequency=40, scaling=150.0, n_frequency_pattern={"k_proj": 24}))
case("fourierft", lambda: peft.FourierFTConfig(target_modules=CONV1D, n_frequency=40, scaling=150.0, random_loc_seed=5, fan_in_fan_out=True), GPT2)
case("ln", lambda: peft.LNTuningConfig(target_modules=["input_layernorm", "norm"]))
case("ln", lambda: peft.LNTuningConfig(target_modules=["ln_1"]), GPT2)
case("miss", lambda: peft.MissConfig(target_modules=LAYERS, r=8))
case("miss-bat", lambda: peft.MissConfig(target_modules=LAYERS, r=8, init_weights="bat"))
case("miss-mini", lambda: peft.MissConfig(target_modules=LAYERS, r=8, mini_r=4, init_weights="mini"), F32)
case("c3a", lambda: peft.C3AConfig(target_modules=LAYERS, block_size=16, block_size_pattern={"up_proj": 8}), noise=2.0)
for variant in ("road_1", "road_2", "road_4"):
    case(variant.replace("_", "-"), lambda v=variant: peft.RoadConfig(target_modules=LAYERS, variant=v, group_size=8), ("llama-f32", "llama-bf16") if variant == "road_1" else F32)
case("shira", lambda: peft.ShiraConfig(target_modules=LAYERS, r=2))
case("hira", lambda: peft.HiraConfig(target_modules=LAYERS, r=4, rank_pattern={"up_proj": 2}))
case("hira", lambda: peft.HiraConfig(target_modules=CONV1D, r=4, fan_in_fan_out=True), GPT2)
case("hira-embedding", lambda: peft.HiraConfig(target_modules=["embed_tokens", "k_proj"], r=4), F32)
case("gralora", lambda: peft.GraloraConfig(target_modules=LAYERS, r=8, alpha=12, gralora_k=2))
case("gralora-hybrid", lambda: peft.GraloraConfig(target_modules=LAYERS, r=8, hybrid_r=2, alpha=12, gralora_k=4), F32)
case("delora", lambda: peft.DeloraConfig(target_modules=LAYERS, r=4, delora_lambda=2, lambda_pattern={"up_proj": 3}, rank_pattern={"k_proj": 2}))
case("vblora", lambda: peft.VBLoRAConfig(target_modules=LAYERS, r=4, num_vectors=12, vector_length=16, topk=2))
case("vblora-topk", lambda: peft.VBLoRAConfig(target_modules=LAYERS, r=4, num_vectors=12, vector_length=16, topk=3, save_only_topk_weights=True), F32)
WAVES = dict(target_modules=LAYERS, n_frequency=60, scaling=2.5)
case("waveft", lambda: peft.WaveFTConfig(**WAVES, n_frequency_pattern={"k_proj": 24}))
case("waveft", lambda: peft.WaveFTConfig(target_modules=CONV1D, n_frequency=60, scaling=2.5, wavelet_family="db3", random_loc_seed=5, fan_in_fan_out=True), GPT2)
case("waveft-coif4", lambda: peft.WaveFTConfig(**WAVES, wavelet_family="coif4"), F32)
case("waveft-sym5", lambda: peft.WaveFTConfig(**WAVES, wavelet_family="sym5", proportional_parameters=True), F32)
case("waveft-direct", lambda: peft.WaveFTConfig(**WAVES, use_idwt=False))
case("beft", lambda: peft.BeftConfig(target_modules=["q_proj", "v_proj"]))
case("supertuning", lambda: peft.SupertuningConfig(target_modules=LAYERS, sparsity=0.93))
case("supertuning-supra", lambda: peft.SupertuningConfig(target_modules=LAYERS, sparsity=0.93, select_top=False, r=4))
case("deft", lambda: peft.DeftConfig(target_modules=LAYERS, r=4, alpha=6))
case("deft", lambda: peft.DeftConfig(target_modules=CONV1D, r=4, fan_in_fan_out=True), GPT2)
case("deft-qr", lambda: peft.DeftConfig(target_modules=LAYERS, r=4, decomposition_method="qr"))
case("deft-para", lambda: peft.DeftConfig(target_modules=LAYERS, r=20, decomposition_method="qr", para=True), F32)
case("peanut", lambda: peft.PeanutConfig(target_modules=LAYERS, r=6, scaling=2.0))
case("peanut-deep", lambda: peft.PeanutConfig(target_modules=LAYERS, r=6, depth=2, act_fn="silu"), F32)
case("peanut-gelu", lambda: peft.PeanutConfig(target_modules=LAYERS, r=6, depth=1, act_fn="gelu"), F32)
case("glora", lambda: peft.GloraConfig(target_modules=["q_proj", *LAYERS], r=3))
case("glora-vectors", lambda: peft.GloraConfig(target_modules=LAYERS, config_A_B="vector", config_C="vector", config_D_E="vector"))
case("glora-constants", lambda: peft.GloraConfig(target_modules=LAYERS, config_A_B="constant", config_C="none", config_D_E="none"), F32)
case("osf", lambda: peft.OSFConfig(target_modules=LAYERS), noise=0.03)
case("osf-pattern", lambda: peft.OSFConfig(target_modules=LAYERS, effective_rank=0.8, rank_pattern={"k_proj": 14}), F32, noise=0.03)
case("tinylora", lambda: peft.TinyLoraConfig(target_modules=LAYERS, r=3, u=8))
case("tinylora", lambda: peft.TinyLoraConfig(target_modules=CONV1D, r=3, u=8, fan_in_fan_out=True), GPT2)
case("tinylora-seed", lambda: peft.TinyLoraConfig(target_modules=["q_proj", "k_proj", *LAYERS], r=3, u=7, weight_tying=0.4, save_projection=False), F32)
case("tinylora-embedding", lambda: peft.TinyLoraConfig(target_modules=["embed_tokens", "k_proj"], r=3, u=8), F32)
case("unilora", lambda: peft.UniLoraConfig(target_modules=LAYERS, r=4, theta_d_length=100), noise=0.3)
case("unilora", lambda: peft.UniLoraConfig(target_modules=CONV1D, r=4, theta_d_length=100, proj_seed=5, fan_in_fan_out=True), GPT2, noise=0.3)
case("unilora-saved", lambda: peft.UniLoraConfig(target_modules=LAYERS, r=4, theta_d_length=100, save_indices=True), noise=0.3)
case("frod", lambda: peft.FrodConfig(target_modules=LAYERS, sparse_rate=0.03, progressbar=False))
case("frod", lambda: peft.FrodConfig(target_modules=CONV1D, sparse_rate=0.03, progressbar=False, fan_in_fan_out=True), GPT2)

if __name__ == "__main__":
    for name, (make, dtype) in BASES.items():
        folder = os.path.join(ROOT, "bases", name)
        if not os.path.exists(folder):
            make(dtype).save_pretrained(folder)
            clean(folder)
    for name, spec in CASES.items():
        if ONLY and name not in ONLY and name.rsplit("-", 2)[0] not in ONLY:
            continue
        try:
            run(name, *spec)
        except Exception as e:  # what PEFT itself cannot do is worth knowing
            print("FAIL", name, type(e).__name__, str(e)[:300])
            shutil.rmtree(os.path.join(ROOT, name), ignore_errors=True)
