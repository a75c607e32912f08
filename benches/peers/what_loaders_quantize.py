"""What transformers' loader replaces by bitsandbytes layers, family by family: the oracle of `--to nf4`, `fp4` and `int8`.

usage: what_loaders_quantize.py OUT.jsonl [ARCHITECTURE …]      needs torch, transformers, accelerate, bitsandbytes; no network and no GPU

For each architecture a tiny model is made and saved, so that the names are those on disk, and bitsandbytes layers are put in as `from_pretrained` does it with
no list of modules to skip. A line of the output is one architecture: the parts of its config.json that matter, the matrices on disk with their shapes, and every
linear layer in memory with the tensor on disk that holds its weight and whether the loader replaces it.
`crates/qmerge/tests/loaders.rs` holds the plan against it. What cannot be made is named on standard error.
"""

import json
import sys
import tempfile
import warnings

import torch
import transformers
from safetensors import safe_open
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer

ARCHITECTURES = """
LlamaForCausalLM LlamaForSequenceClassification LlamaForTokenClassification MistralForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM
Qwen3MoeForCausalLM Qwen3NextForCausalLM MixtralForCausalLM GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration PhiForCausalLM
Phi3ForCausalLM GPT2LMHeadModel GPT2ForSequenceClassification GPTNeoXForCausalLM GPTJForCausalLM GPTBigCodeForCausalLM OPTForCausalLM BloomForCausalLM
FalconForCausalLM MambaForCausalLM Mamba2ForCausalLM FalconMambaForCausalLM JambaForCausalLM BambaForCausalLM FalconH1ForCausalLM T5ForConditionalGeneration
BartForConditionalGeneration WhisperForConditionalGeneration BertForMaskedLM BertForSequenceClassification RobertaForMaskedLM RobertaForSequenceClassification
ModernBertForMaskedLM DistilBertForSequenceClassification ElectraForMaskedLM EsmForMaskedLM DeepseekV2ForCausalLM DeepseekV3ForCausalLM Olmo2ForCausalLM
OlmoeForCausalLM GraniteForCausalLM GraniteMoeForCausalLM CohereForCausalLM Cohere2ForCausalLM Starcoder2ForCausalLM StableLmForCausalLM SmolLM3ForCausalLM
Qwen2VLForConditionalGeneration Qwen2_5_VLForConditionalGeneration Qwen3VLForConditionalGeneration LlavaForConditionalGeneration Idefics3ForConditionalGeneration
SmolVLMForConditionalGeneration PaliGemmaForConditionalGeneration Mistral3ForConditionalGeneration GptOssForCausalLM Llama4ForCausalLM NemotronForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM
Lfm2ForCausalLM Ernie4_5ForCausalLM Exaone4ForCausalLM HeliumForCausalLM MT5ForConditionalGeneration PegasusForConditionalGeneration MBartForConditionalGeneration
ViTForImageClassification CLIPModel RwkvForCausalLM
""".split()

# Sizes of a tiny model, under all names that configurations have for them.
SIZES = {
    64: "hidden_size d_model n_embd dim word_embed_proj_dim embed_dim embedding_size out_hidden_size projection_dim text_embed_dim",
    128: "intermediate_size ffn_dim d_ff encoder_ffn_dim decoder_ffn_dim n_inner moe_intermediate_size shared_expert_intermediate_size intermediate_size_mlp "
    "shared_intermediate_size mamba_d_ssm ffn_hidden_size block_ff_dim",
    2: "num_hidden_layers n_layer num_layers encoder_layers decoder_layers num_decoder_layers depth n_layers num_key_value_heads n_group topk_group num_experts_per_tok "
    "top_k num_selects first_k_dense_replace",
    4: "num_attention_heads n_head num_heads encoder_attention_heads decoder_attention_heads n_heads num_experts num_local_experts n_routed_experts",
    16: "head_dim d_kv global_head_dim qk_nope_head_dim v_head_dim kv_lora_rank mamba_d_head linear_key_head_dim linear_value_head_dim mamba_d_state state_size ssm_state_size",
    8: "qk_rope_head_dim mamba_n_heads linear_num_key_heads linear_num_value_heads patch_size n_groups",
    96: "vocab_size",
    32: "image_size q_lora_rank num_mel_bins",
    128.5: "max_position_embeddings n_positions max_source_positions max_target_positions n_ctx",
}
WORDS = {name: int(size) for size, names in SIZES.items() for name in names.split()}
BY_TYPE = {
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "falcon_h1": {"mamba_n_groups": 1, "mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "attn_layer_indices": [1]},
    "falcon": {"num_kv_heads": 4},
    "qwen2_vl": {}, "deepseek_v3": {"n_group": 2, "topk_group": 1}, "deepseek_v2": {"n_group": 1, "topk_group": 1},
    "whisper": {"max_source_positions": 64}, "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_dt_rank": 8, "use_mamba_kernels": False},
    "lfm2": {"full_attn_idxs": [1]},
    "esm": {"vocab_size": 96, "pad_token_id": 1},
    "nemotron": {"num_key_value_heads": 2},
}
KEPT = ("model_type", "architectures", "tie_word_embeddings", "text_config", "num_labels")


def put(config, name, value):
    """Sets a field; one that is derived from others follows them."""
    try:
        setattr(config, name, value)
    except AttributeError:
        pass


def shrink(config):
    """Makes every size small, in parts of the configuration too."""
    for name, size in WORDS.items():
        if isinstance(getattr(config, name, None), int) and not isinstance(getattr(config, name), bool):
            put(config, name, size)
    for name, value in BY_TYPE.get(config.model_type, {}).items():
        put(config, name, value)
    if isinstance(getattr(config, "layer_types", None), list):
        put(config, "layer_types", [config.layer_types[0], config.layer_types[-1]])
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "image_token_id", "image_token_index", "video_token_id", "decoder_start_token_id"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, 1)
    for part in vars(config).values():
        if isinstance(part, transformers.PreTrainedConfig):
            shrink(part)
    return config


def examine(architecture):
    cls = getattr(transformers, architecture)
    model = cls(shrink(cls.config_class()))
    linears = {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear or isinstance(module, Conv1D)}
    with torch.no_grad():
        for number, module in enumerate(linears.values()):
            module.weight.fill_(number + 1)
    tied = {name for name, parameter in model.named_parameters(remove_duplicate=False)} - {name for name, _ in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.load(open(folder + "/config.json"))
        tensors, holders = {}, {}
        with safe_open(folder + "/model.safetensors", "pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                if tensor.ndim > 1:
                    tensors[name] = list(tensor.shape)
                first = tensor.flatten()[0].item() if tensor.numel() else 0
                if tensor.ndim == 2 and first == int(first) and 0 < first <= len(linears) and bool((tensor == first).all()):
                    holders[int(first)] = name
    quantization = BitsAndBytesConfig(load_in_4bit=True)
    skip = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    replace_with_bnb_linear(model, modules_to_not_convert=skip, quantization_config=quantization, pre_quantized=True)
    replaced = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    return {
        "architecture": architecture,
        "config": {name: config[name] for name in KEPT if name in config},
        "tensors": tensors,
        "linears": [[name, holders.get(number + 1), name in replaced] for number, name in enumerate(linears)],
        "always_kept": sorted(model._keep_in_fp32_modules or []),
    }


def main():
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    names = sys.argv[2:] or ARCHITECTURES
    with open(sys.argv[1], "w") as out:
        for architecture in names:
            try:
                found = examine(architecture)
            except Exception as error:  # noqa: BLE001 (a family that this version cannot make small is left out, by name)
                print(f"{architecture}: left out: {type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}", file=sys.stderr)
                continue
            text_config = found["config"].get("text_config")
            if isinstance(text_config, dict):
                found["config"]["text_config"] = {k: text_config[k] for k in ("model_type", "tie_word_embeddings") if k in text_config}
            out.write(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
