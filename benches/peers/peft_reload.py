"""Adapters that qmerge makes, loaded by PEFT: the model with them predicts what it should.

    pip install peft torch transformers
    python3 benches/peers/peft_reload.py QMERGE [--work DIR]

Of small random models (Llama with its head apart and tied, GPT-2 with its head tied): `extract` of a tuned model whose layers differ by matrices of low rank and whose embeddings, norms
and biases differ too; `convert-adapter` of adapters of other methods; `combine` of two LoRAs; `truncate` to the rank that a LoRA has. Prints how far logits are from those of the
tuned model, of the adapter itself, and of the sum, and ends with status 1 where that is more than 1e-4 of the largest.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import peft
import torch
import transformers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
TOKENS = torch.tensor([[1, 5, 2, 40, 7, 30, 11, 3]])
WORST = 1e-4


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator) * 0.1
            p.copy_(1 + noise if ("norm" in name or "ln_" in name) and p.ndim == 1 else noise)
    return model.eval()


def llama(tied):
    config = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=48, num_attention_heads=2, num_key_value_heads=1, head_dim=16, intermediate_size=48,
                                      max_position_embeddings=64, attention_bias=True, tie_word_embeddings=tied)
    return randomize(transformers.LlamaForCausalLM(config), 1)


def gpt2():
    return randomize(transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=48, n_positions=32)), 2)


MODELS = {"llama": lambda: llama(False), "llama-tied": lambda: llama(True), "gpt2-tied": gpt2}
TARGETS = {"llama": ["k_proj", "up_proj", "down_proj"], "llama-tied": ["q_proj", "down_proj"], "gpt2-tied": ["c_attn", "c_fc"]}


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits[0]


def opened(folder):
    kind = transformers.GPT2LMHeadModel if "gpt2" in folder else transformers.LlamaForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def tuned(folder):
    """Low rank where a LoRA can stand, and everything else moved a little."""
    model = opened(folder)
    generator = torch.Generator().manual_seed(7)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    with torch.no_grad():
        for name, p in model.named_parameters():
            is_linear = p.ndim == 2 and not any(word in name for word in ("embed", "lm_head", "wte", "wpe"))
            p.add_(0.1 * draw(p.shape[0], 3) @ draw(3, p.shape[1]) if is_linear else 0.05 * draw(*p.shape))
    return model


def trained(folder, config, path):
    """An adapter after some steps, as noise has it."""
    torch.manual_seed(3)
    model = peft.get_peft_model(opened(folder), config)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape) * 0.05)
    model.save_pretrained(path)
    return path


def methods(targets, turned):
    """Of IA³ nothing that has a bias: that is multiplied too, which no LoRA says, and `convert-adapter` tells of it."""
    common = dict(target_modules=targets)
    yield "dora", peft.LoraConfig(r=4, use_dora=True, fan_in_fan_out=turned, **common)
    # PEFT puts few methods on GPT-2's Conv1D.
    if not turned:
        yield "loha", peft.LoHaConfig(r=2, alpha=4, **common)
        yield "lokr", peft.LoKrConfig(r=4, alpha=4, decompose_factor=4, **common)
        yield "oft", peft.OFTConfig(r=0, oft_block_size=4, **common)
        yield "hra", peft.HRAConfig(r=4, **common)
        yield "ia3", peft.IA3Config(target_modules=["up_proj", "down_proj"], feedforward_modules=["down_proj"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("qmerge")
    parser.add_argument("--work", default=None)
    args = parser.parse_args()
    work = args.work or tempfile.mkdtemp()
    failed = []

    def run(*words):
        done = subprocess.run([args.qmerge, *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(words)}: {done.stderr}")

    def loads(what, folder, adapter, want):
        own = logits(peft.PeftModel.from_pretrained(opened(folder), adapter).eval())
        away = ((own - want).abs().max() / want.abs().max()).item()
        moved = ((logits(opened(folder)) - want).abs().max() / want.abs().max()).item()
        print(f"{what}: {away:.1e} away, and the base alone {moved:.1e}")
        if not (away <= WORST < moved):
            failed.append(what)

    for name, make in MODELS.items():
        base = os.path.join(work, name)
        make().save_pretrained(base)
        other = tuned(base)
        path = os.path.join(work, f"{name}-tuned")
        other.save_pretrained(path)
        out = os.path.join(work, f"{name}-extracted")
        run("extract", "--base", base, "--tuned", path, "--rank", "3", "-o", out, "--force")
        loads(f"{name} extract", base, out, logits(other))
        turned = name.startswith("gpt2")
        for method, config in methods(TARGETS[name], turned):
            adapter = trained(base, config, os.path.join(work, f"{name}-{method}"))
            want = logits(peft.PeftModel.from_pretrained(opened(base), adapter).eval())
            out = os.path.join(work, f"{name}-{method}-lora")
            run("convert-adapter", "--base", base, "--adapter", adapter, "--energy", "1", "-o", out, "--force")
            loads(f"{name} convert-adapter {method}", base, out, want)
        lora = lambda rank, path: trained(base, peft.LoraConfig(r=rank, target_modules=TARGETS[name], fan_in_fan_out=turned, init_lora_weights=False), path)
        one, two = lora(4, os.path.join(work, f"{name}-one")), lora(2, os.path.join(work, f"{name}-two"))
        run("merge", base, f"{one}=0.5", f"{two}=1.5", "--rounding", "nearest", "-o", os.path.join(work, f"{name}-sum"), "--force")
        want = logits(opened(os.path.join(work, f"{name}-sum")))
        out = os.path.join(work, f"{name}-combined")
        run("combine", "--adapter", f"{one}=0.5", "--adapter", f"{two}=1.5", "-o", out, "--force")
        loads(f"{name} combine", base, out, want)
        out = os.path.join(work, f"{name}-cut")
        run("truncate", "--adapter", one, "--rank", "4", "-o", out, "--force")
        loads(f"{name} truncate", base, out, logits(peft.PeftModel.from_pretrained(opened(base), one).eval()))
    if args.work is None:
        shutil.rmtree(work)
    if failed:
        sys.exit("not what it should be: " + ", ".join(failed))


if __name__ == "__main__":
    main()
