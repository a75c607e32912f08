"""Does PEFT load what extract and convert-adapter make of experts? Small random models of experts, as transformers has them, with adapters on their stacks.

    experts.py QMERGE [FAMILY ...]      FAMILY: mixtral qwen3 qwen2 deepseek gptoss granite llama4 phimoe olmoe; all without one

For each family and way: the largest difference between logits, as a share of the largest logit. "PEFT": the base with the new adapter in PEFT, less the tuned model
(or qmerge's merge of the old adapter). "merge": qmerge's merge of the new adapter, less the same. Ends with an error above 2e-5.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import warnings

import peft
import torch
import transformers

transformers.logging.set_verbosity_error()
IDS = torch.randint(0, 48, (2, 12), generator=torch.Generator().manual_seed(0))
SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 24,
}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 2}
FAMILIES = {
    "mixtral": ("Mixtral", {"num_local_experts": 3, "num_hidden_layers": 2}),
    # The second layer is dense.
    "qwen3": ("Qwen3Moe", {"num_experts": 3, "moe_intermediate_size": 16, "head_dim": 16, "num_hidden_layers": 2, "mlp_only_layers": [1]}),
    "qwen2": ("Qwen2Moe", {"num_experts": 3, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}),
    "deepseek": (
        "DeepseekV3",
        {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "num_hidden_layers": 2} | LATENT,
    ),
    "gptoss": ("GptOss", {"num_local_experts": 3, "head_dim": 16, "intermediate_size": 32, "layer_types": ["full_attention"]}),
    "granite": ("GraniteMoe", {"num_local_experts": 3}),
    "llama4": (
        "Llama4",
        {"num_local_experts": 3, "head_dim": 16, "intermediate_size_mlp": 32, "moe_layers": [0], "layer_types": ["full_attention"], "num_experts_per_tok": 1},
    ),
    "phimoe": ("Phimoe", {"num_local_experts": 3}),
    "olmoe": ("Olmoe", {"num_experts": 3}),
}


def model(family):
    """The model of a family, with random values."""
    name, more = FAMILIES[family]
    config = getattr(transformers, f"{name}TextConfig" if name == "Llama4" else f"{name}Config")(**SMALL | more)
    made, noise = getattr(transformers, f"{name}ForCausalLM")(config), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, values in made.named_parameters():
            values.copy_(torch.randn(values.shape, generator=noise) * (0.05 if values.dim() == 1 else 0.15) + ("norm" in path))
    return made.eval()


def tuned(family):
    """The same with a difference of rank 3 in each matrix, and others in vectors."""
    made, noise = model(family), torch.Generator().manual_seed(7)
    random = lambda *shape: torch.randn(*shape, generator=noise)
    with torch.no_grad():
        for path, values in made.named_parameters():
            shape = values.shape
            if values.dim() > 1 and "embed" not in path:
                values += 0.02 * random(*shape[:-1], 3) @ random(*shape[:-2], 3, shape[-1])
            elif values.dim() == 1:
                values += 0.02 * random(*shape)
    return made


def adapter(family, folder):
    """An adapter on all stacks, and on some layers."""
    made = model(family)
    stacks = sorted(path for path, values in made.named_parameters() if values.dim() == 3)
    config = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, init_lora_weights=False, target_modules=["q_proj", "k_proj", "kv_b_proj"], target_parameters=stacks)
    made, noise = peft.get_peft_model(made, config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for path, values in made.named_parameters():
            if "lora_" in path:
                values.copy_(torch.randn(values.shape, generator=noise) * 0.1)
    made.save_pretrained(folder)
    return logits(made)


def logits(made):
    with torch.no_grad():
        return made.eval()(IDS).logits.double()


def load(path, adapter=None):
    """The logits of a folder, with an adapter of which PEFT is to miss nothing."""
    made = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if adapter:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*(missing|unexpected).*")
            made = peft.PeftModel.from_pretrained(made, adapter)
    return logits(made)


def run(*arguments):
    done = subprocess.run([sys.argv[1], *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{arguments}: {done.stderr}")
    return done.stdout


worst = 0
for family in sys.argv[2:] or FAMILIES:
    with tempfile.TemporaryDirectory() as folder:
        at = pathlib.Path(folder)
        model(family).save_pretrained(at / "base")
        tuned(family).save_pretrained(at / "tuned")
        peft_says = adapter(family, at / "lora")
        run("merge", at / "base", at / "lora", "--fast", "-o", at / "merge")
        goals = {"tuned": load(at / "tuned"), "merge": load(at / "merge")}
        base = load(at / "base")
        extract = lambda to, *how: ["extract", "--base", at / "base", "--tuned", at / to, *how]
        convert = lambda *how: ["convert-adapter", at / "base", at / "lora", *how]
        ways = [("tuned", extract("tuned", "--rank", 3)), ("tuned", extract("tuned", "--energy", 0.9999999)), ("merge", extract("merge", "--rank", 4))]
        ways += [("merge", convert("--rank", 4)), ("merge", convert("--energy", 1))]
        share = lambda a, b: ((a - b).abs().max() / b.abs().max()).item()
        print(f"{family}: the adapter differs by {share(peft_says, base):.0e}, its merge from PEFT by {share(goals['merge'], peft_says):.0e}")
        for number, (goal, way) in enumerate(ways):
            told = json.loads(run(*way, "-o", at / f"new{number}", "--json"))
            run("merge", at / "base", at / f"new{number}", "--fast", "-o", at / f"again{number}")
            found = [share(load(at / "base", at / f"new{number}"), goals[goal]), share(load(at / f"again{number}"), goals[goal])]
            worst = max(worst, *found)
            left = f", left out {[tensor['name'] for tensor in told['dropped']]}" if told["dropped"] else ""
            print(f"  {way[0]} {way[-2]} {way[-1]}: PEFT {found[0]:.0e}, merge {found[1]:.0e}{left}")
if worst > 2e-5:
    sys.exit(f"off by {worst:.1e}")
