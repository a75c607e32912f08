"""Makes testdata/module_order.json: the linear layers and embeddings of small models of each family, in the order in which transformers' code defines them.

    pip install torch==2.15.0 transformers==5.23.0
    python module_order.py ../../../qmerge-run/testdata/tiny ../module_order.json

The families are those of which the runner's test data has a configuration. Methods that number their modules do it in this order.
"""

import json
import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import torch
import transformers

transformers.utils.logging.set_verbosity_error()
folder, out = sys.argv[1:]
LAYERS = (torch.nn.Linear, torch.nn.Embedding, transformers.pytorch_utils.Conv1D)
orders = {}
for name in sorted(os.listdir(folder)):
    path = os.path.join(folder, name, "config.json")
    if not os.path.exists(path):
        continue
    try:
        config = transformers.AutoConfig.from_pretrained(os.path.join(folder, name))
        if config.model_type in orders or hasattr(config, "vision_config"):
            continue
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        orders[config.model_type] = [path for path, module in model.named_modules() if isinstance(module, LAYERS)]
    except Exception as e:
        print("left out", name, type(e).__name__, str(e)[:100])
with open(out, "w") as f:
    f.write("{\n" + ",\n".join(f"{json.dumps(family)}: {json.dumps(order)}" for family, order in sorted(orders.items())) + "\n}\n")
print(len(orders), "families")
