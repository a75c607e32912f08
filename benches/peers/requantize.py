"""Loads a 16-bit model into NF4 with double quantization, as bitsandbytes and transformers do, and saves it.

    requantize.py MODEL OUT
"""

import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
start = time.time()
import sys

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
imported = time.time()
folder, out = sys.argv[1:3]
how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=how).save_pretrained(out)
print(f"import {imported - start:.2f} s, all {time.time() - start:.2f} s")
