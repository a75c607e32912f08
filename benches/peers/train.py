"""Trains an adapter of one of PEFT's methods on a text, on a CPU, to have adapters to measure merges with.

    train.py MODEL16 METHOD TEXT OUT [--steps 60] [--context 256] [--batch 2] [--lr LR] [--threads 1]

METHOD is one of METHODS below, with the rate that it was found to learn at. MODEL16 is plain: for an adapter on a quantized base what `qmerge convert --to bf16` makes of it,
so that training sees the quantized weights.
"""

import argparse
import math
import time

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ALL = {"target_modules": "all-linear"}
METHODS = {
    "lora": (3e-4, lambda: peft.LoraConfig(r=16, lora_alpha=32, **ALL)),
    "dora": (3e-4, lambda: peft.LoraConfig(r=16, lora_alpha=32, use_dora=True, **ALL)),
    "ia3": (1e-2, lambda: peft.IA3Config()),
    "lokr": (1e-3, lambda: peft.LoKrConfig(r=16, alpha=32, **ALL)),
    "oft": (5e-4, lambda: peft.OFTConfig(oft_block_size=32, **ALL)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "method", "text", "out"):
        parser.add_argument(name)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ids = torch.tensor(tokenizer(open(args.text).read(), add_special_tokens=False)["input_ids"])
    rate, config = METHODS[args.method]
    rate, config = args.lr or rate, config()
    config.task_type = "CAUSAL_LM"
    model = peft.get_peft_model(model, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    start = time.time()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        places = torch.randint(0, len(ids) - args.context, (args.batch,))
        batch = torch.stack([ids[place : place + args.context] for place in places])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 10 == 0 or step + 1 == args.steps:
            print(step, round(loss.item(), 4), f"{time.time() - start:.0f} s", flush=True)
    model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
