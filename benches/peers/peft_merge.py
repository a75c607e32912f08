"""Merges as PEFT's users do: load, merge_and_unload, save. One process, so that time and peak memory are the whole of it.

    python peft_merge.py BASE ADAPTER OUT
"""

import os
import sys
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

start = time.time()
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
if os.environ.get("OMP_NUM_THREADS"):
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
imported = time.time()
base, adapter, out = sys.argv[1:4]
model = AutoModelForCausalLM.from_pretrained(base)
model = PeftModel.from_pretrained(model, adapter)
loaded = time.time()
model = model.merge_and_unload()
merged = time.time()
# transformers 5.23 cannot save a model that was loaded from a bitsandbytes checkpoint in its original layout.
model.save_pretrained(out, save_original_format=False)
saved = time.time()
import resource

print(
    f"import {imported - start:.2f} s, load {loaded - imported:.2f} s, merge {merged - loaded:.2f} s, save {saved - merged:.2f} s, "
    f"load+merge+save {saved - imported:.2f} s, peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
)
