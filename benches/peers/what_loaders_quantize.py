"""What transformers' loader replaces by bitsandbytes layers, family by family: the oracle of `--to nf4`, `fp4` and `int8`.

usage: what_loaders_quantize.py OUT.jsonl [ARCHITECTURE …]      needs torch, transformers, accelerate, bitsandbytes; no network and no GPU

Goes through every language model that transformers knows (causal, sequence to sequence, masked, image and speech to text) and some classifiers and encoders. Of each a small
model is made on the meta device and prepared for loading a checkpoint in 4 bits, by the quantizer's own code and with no list of modules to skip. A line of the output is
one architecture: the parts of its config.json that matter; every linear layer in memory, as `[name, shape on disk, replaced]` where its weight is `name.weight` on disk,
`[name, tensor, shape, replaced]` where it is another tensor, and `[name, replaced]` where it is none (a tied head); and the shapes of all other tensors on disk that have two
dimensions or more. `{0-3}` in names stands for all numbers from 0 to 3. Sizes above 192 are cut to it: what is quantized does not depend on them.
`crates/qmerge/tests/it/loaders/list.rs` holds the plan against it. What cannot be made small is named on standard error.
"""

import itertools
import json
import re
import sys
import warnings

import bitsandbytes
import torch
import transformers
from transformers import BitsAndBytesConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

TASKS = "CAUSAL_LM IMAGE_TEXT_TO_TEXT SEQ_TO_SEQ_CAUSAL_LM SPEECH_SEQ_2_SEQ MASKED_LM".split()
OTHERS = """
LlamaForSequenceClassification LlamaForTokenClassification LlamaModel MistralModel Qwen2Model Qwen2ForTokenClassification Qwen3ForSequenceClassification
Gemma2ForSequenceClassification GPT2ForSequenceClassification BertForSequenceClassification BertForQuestionAnswering BertModel RobertaForSequenceClassification
XLMRobertaForSequenceClassification DistilBertForSequenceClassification DebertaV2ForSequenceClassification ModernBertForSequenceClassification
ElectraForSequenceClassification AlbertForSequenceClassification BartForSequenceClassification T5EncoderModel CLIPModel ViTForImageClassification
ViTModel ViTMAEForPreTraining ViTMSNForImageClassification DeiTForImageClassification BeitForImageClassification IJepaForImageClassification PixioModel
Dinov2ForImageClassification Dinov2WithRegistersForImageClassification DINOv3ViTModel SwinForImageClassification SegformerForImageClassification
SegformerForSemanticSegmentation Mask2FormerForUniversalSegmentation OneFormerForUniversalSegmentation VivitForVideoClassification
ASTForAudioClassification AltCLIPModel VisionTextDualEncoderModel Sapiens2Model
""".split()

# Sizes of a small model, under all names that configurations have for them.
SIZES = {
    64: "hidden_size d_model n_embd embed_dim",
    128: "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim",
    32: "moe_intermediate_size",
    16: "head_dim d_kv",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts",
    2: "num_key_value_heads num_experts_per_tok num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers depth",
    96: "vocab_size",
    40: "max_position_embeddings n_positions",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}
FEW_LAYERS = {name: 2 for name in "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers depth".split()}
MORE = {"jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}, "llama4_text": {"no_rope_layers": [1, 0], "moe_layers": [1]}}
# Their lines are longer than those of a hundred others.
LEFT_OUT = "Nemotron3_5TranscribeForConditionalGeneration VibeVoiceForConditionalGeneration VibeVoiceAsrForConditionalGeneration Florence2ForConditionalGeneration".split()
TYPES = ("model_type", "tie_word_embeddings")
LARGEST = 192


def shrunk(fields, sizes):
    """The fields of a configuration with small sizes, in its parts too."""
    out = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            value = shrunk(value, sizes)
        elif name in sizes and type(value) is int and value:
            value = min(value, sizes[name])
        elif str(name).endswith("token_id") and type(value) is int and sizes is SMALL:
            value = min(value, 1)
        elif str(name).endswith("layer_types") or name in ("out_features", "out_indices", "stage_names"):
            value = None
        out[name] = value
    return out | (MORE.get(fields.get("model_type"), {}))


def made(cls):
    """A model on the meta device, as small as its configuration class allows, and its configuration."""
    problem = None
    for sizes in (SMALL, {**SMALL, **dict.fromkeys(("hidden_size", "num_attention_heads", "head_dim"), 1 << 30)}, FEW_LAYERS):
        fields = shrunk(cls.config_class().to_dict(), sizes)
        for name in ("transformers_version", "architectures"):
            fields.pop(name, None)
        try:
            config = cls.config_class.from_dict(fields)
            with torch.device("meta"):
                return cls(config), config
        except Exception as error:  # noqa: BLE001 (the next sizes are tried)
            problem = problem or error
    raise problem


def holder(model, name, stored, tied):
    """The tensor on disk that holds a linear layer's weight; None if it is tied to another."""
    weight = f"{name}.weight"
    if weight in tied or weight in stored:
        return None if weight in tied else weight
    [found] = revert_weight_conversion(model, {weight: torch.empty(4, 4, device="meta")})
    assert found in stored, f"{name} is {found}, which is not on disk"
    return found


def examine(architecture):
    cls = getattr(transformers, architecture)
    model, config = made(cls)
    tied = set(model.all_tied_weights_keys)
    stored = {
        name: [min(size, LARGEST) for size in value.shape]
        for name, value in revert_weight_conversion(model, model.state_dict()).items()
        if name not in tied
    }
    linears = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear or isinstance(module, Conv1D)]
    holders = {name: holder(model, name, stored, tied) for name in linears}
    kept = sorted(model._keep_in_fp32_modules or [])
    model, config = made(cls)
    quantizer = Bnb4BitHfQuantizer(BitsAndBytesConfig(load_in_4bit=True), pre_quantized=True)
    quantizer.preprocess_model(model, device_map=None)
    replaced = [name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    # What is made of one module only where the checkpoint is quantized has no tensor on disk.
    linears += [name for name in replaced if name not in holders]
    found = {name: getattr(config, name) for name in TYPES if hasattr(config, name)} | {"architectures": [architecture]}
    for name, part in vars(config).items():
        if isinstance(part, transformers.PreTrainedConfig):
            found[name] = {field: getattr(part, field) for field in TYPES if hasattr(part, field)}
    return {
        "architecture": architecture,
        "config": found,
        "linears": layers({name: (holders.get(name), stored.get(holders.get(name)), name in replaced) for name in linears}),
        "others": collapsed({name: shape for name, shape in stored.items() if len(shape) > 1 and name not in holders.values()}),
        "always_kept": kept,
    }


def layers(found):
    """Layers with where their weights are on disk, and whether they are replaced."""
    own = {name: value[1:] for name, value in found.items() if value[0] == f"{name}.weight"}
    none = {name: value[2:] for name, value in found.items() if value[0] is None}
    # Names with their tensors' names, so that both are collapsed alike.
    others = {f"{name} {value[0]}": value[1:] for name, value in found.items() if value[0] not in (None, f"{name}.weight")}
    return [[*names.split(" "), *value] for part in (collapsed(own), collapsed(none), collapsed(others, 2)) for names, value in part.items()]


def collapsed(values, copies=1):
    """Names that differ in numbers only, and have equal values, as one name with `{first-last}` in their places. With two copies a name is two
    with the same numbers in the same order."""
    groups = {}
    for name, value in values.items():
        template = re.sub(r"(?<=[._ ])\d+(?=[. ]|$)", "#", name)
        numbers = tuple(map(int, re.findall(r"(?<=[._ ])(\d+)(?=[. ]|$)", name)))
        if copies == 2 and numbers[: len(numbers) // 2] != numbers[len(numbers) // 2 :]:
            template, numbers = name, ()
        groups.setdefault((template, json.dumps(value)), set()).add(numbers)
    out = {}
    for (template, value), found in groups.items():
        once = {numbers[: len(numbers) // copies] for numbers in found}
        ranges = [sorted(set(column)) for column in zip(*once)]
        full = all(column == list(range(column[0], column[-1] + 1)) for column in ranges) and set(itertools.product(*ranges)) == once
        names = [[f"{{{c[0]}-{c[-1]}}}" if len(c) > 1 else str(c[0]) for c in ranges]] if full else [list(map(str, n)) for n in sorted(once)]
        for texts in names:
            parts = iter(texts * copies)
            out[re.sub("#", lambda _: next(parts), template)] = json.loads(value)
    return out


def main():
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    mappings = [getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").values() for task in TASKS]
    names = sys.argv[2:] or [name for name in dict.fromkeys([*itertools.chain(*mappings), *OTHERS]) if name not in LEFT_OUT]
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        for architecture in names:
            try:
                found = examine(architecture)
            except Exception as error:  # noqa: BLE001 (a family that this version cannot make small is left out, by name)
                print(f"{architecture}: left out: {type(error).__name__}: {str(error).strip()[:160]}", file=sys.stderr)
                continue
            out.write(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
