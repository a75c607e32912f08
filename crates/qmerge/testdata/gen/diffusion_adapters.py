"""Makes testdata/adapters-of-others/diffusion: adapters of small diffusion models, and what diffusers and LyCORIS make of them.

    pip install diffusers==0.42.1 lycoris-lora transformers==5.24.0 torch==2.15.0 peft==0.21.2
    python diffusion_adapters.py ../adapters-of-others/diffusion

sd and sdxl are pipelines: unet, text_encoder and for SDXL text_encoder_2 as diffusers saves them; flux is Flux' transformer. Every adapter is a file NAME.safetensors in the folder of its
pipeline, and NAME.PART.safetensors holds the weights of a part that it changed: by diffusers' load_lora_weights and fuse_lora, for LyCORIS' files by its own code.
"""

import json
import re
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, FluxTransformer2DModel, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else "../adapters-of-others/diffusion")
RANDOM = torch.Generator()


def draw(*shape, sigma=0.2):
    return torch.randn(shape, generator=RANDOM) * sigma


def randomize(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(1 + draw(*p.shape, sigma=0.05) if "norm" in name and p.ndim == 1 else draw(*p.shape, sigma=0.05))
    return model.eval()


def encoder(kind):
    config = CLIPTextConfig(vocab_size=24, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8, projection_dim=16)
    return randomize(kind(config))


def make(name):
    RANDOM.manual_seed(11)
    xl = name == "sdxl"
    more = dict(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=40, transformer_layers_per_block=(1, 1)) if xl else {}
    unet = randomize(UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=4, cross_attention_dim=32 if xl else 16, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=xl, **more))
    parts = {"unet": unet, "text_encoder": encoder(CLIPTextModel)}
    if xl:
        parts["text_encoder_2"] = encoder(CLIPTextModelWithProjection)
    for part, model in parts.items():
        model.save_pretrained(ROOT / name / part)
    return parts


def load(name):
    folder = ROOT / name
    parts = {"unet": UNet2DConditionModel.from_pretrained(folder / "unet"), "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder")}
    if name == "sdxl":
        parts["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
    return parts


def pipeline(name, parts):
    common = dict(vae=None, tokenizer=None, scheduler=DDIMScheduler())
    if name == "sdxl":
        return StableDiffusionXLPipeline(**parts, tokenizer_2=None, **common)
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **common)


def written(name, part):
    return load_file(next((ROOT / name / part).glob("*.safetensors")))


def store(name, adapter, parts):
    """What changed of each part, under the names that it is saved by."""
    for part, model in parts.items():
        model.save_pretrained("/tmp/diffusion-fused")
        after = load_file(next(Path("/tmp/diffusion-fused").glob("*.safetensors")))
        next(Path("/tmp/diffusion-fused").glob("*.safetensors")).unlink()
        before = written(name, part)
        assert after.keys() == before.keys(), (after.keys() ^ before.keys())
        changed = {key: value for key, value in after.items() if not torch.equal(value, before[key])}
        print(name, adapter, part, len(changed))
        if changed:
            save_file(changed, ROOT / name / f"{adapter}.{part}.safetensors")


def fused(name, adapter):
    parts = load(name)
    pipe = pipeline(name, parts)
    pipe.load_lora_weights(str(ROOT / name), weight_name=f"{adapter}.safetensors")
    pipe.fuse_lora(components=[part for part in parts if getattr(parts[part], "peft_config", None)])
    pipe.unload_lora_weights()
    store(name, adapter, parts)


def to_sgm(path):
    """The name of a module in the file that SDXL was published in, for two residual layers to a block."""
    if m := re.match(r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", path):
        path = f"input_blocks.{1 + 3 * int(m[1]) + int(m[3])}.{int(m[2] == 'attentions')}.{m[4]}"
    elif m := re.match(r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.*)", path):
        path = f"output_blocks.{3 * int(m[1]) + int(m[3])}.{int(m[2] == 'attentions')}.{m[4]}"
    elif m := re.match(r"mid_block\.attentions\.0\.(.*)", path):
        path = f"middle_block.1.{m[1]}"
    elif m := re.match(r"mid_block\.resnets\.(\d)\.(.*)", path):
        path = f"middle_block.{2 * int(m[1])}.{m[2]}"
    for old, new in [(".conv1", ".in_layers.2"), (".conv2", ".out_layers.3"), (".time_emb_proj", ".emb_layers.1"), (".conv_shortcut", ".skip_connection")]:
        path = path.replace(old, new)
    return path


def kohya(name, adapter, chosen, alphas=True):
    """A file as sd-scripts writes it: its own names for the modules, a rank and an alpha for each."""
    RANDOM.manual_seed(5)
    tensors = {}
    for part, pattern in chosen.items():
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te1" if name == "sdxl" else "lora_te", "text_encoder_2": "lora_te2"}[part]
        for module, layer in load(name)[part].named_modules():
            if not re.search(pattern, module) or not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
                continue
            if part != "unet" and not module.startswith("text_model.") and module != "text_projection":
                module = f"text_model.{module}"
            flat = prefix + "_" + (to_sgm(module) if name == "sdxl" and part == "unet" else module).replace(".", "_")
            rank = 4 if layer.weight.ndim == 2 or layer.kernel_size == (1, 1) else 2
            out, kernel = layer.weight.shape[0], layer.weight.shape[1:]
            tensors[f"{flat}.lora_down.weight"] = draw(rank, *kernel)
            tensors[f"{flat}.lora_up.weight"] = draw(out, rank, *[1] * (layer.weight.ndim - 2))
            if alphas:
                tensors[f"{flat}.alpha"] = torch.tensor(float(rank) / 2)
    save_file(tensors, ROOT / name / f"{adapter}.safetensors", {"ss_network_module": "networks.lora", "ss_network_dim": "4"})
    fused(name, adapter)


def diffusers_file(name, adapter, old):
    RANDOM.manual_seed(6)
    parts = load(name)
    configs = {"unet": LoraConfig(r=4, lora_alpha=6, target_modules=["to_k", "to_out.0"], rank_pattern={"attn2.to_k": 2}), "text_encoder": LoraConfig(r=4, lora_alpha=3, target_modules=["q_proj", "fc1"])}
    layers = {}
    for part, config in configs.items():
        inject_adapter_in_model(config, parts[part])
        for parameter, p in parts[part].named_parameters():
            if "lora_" in parameter:
                p.data.copy_(draw(*p.shape))
        layers[part] = get_peft_model_state_dict(parts[part])
    options = {}
    if old:
        layers = {part: convert_state_dict_to_diffusers(state) for part, state in layers.items()}
    else:
        options = {f"{part}_lora_adapter_metadata": config.to_dict() for part, config in configs.items()}
    pipe = pipeline(name, parts)
    pipe.save_lora_weights(ROOT / name, unet_lora_layers=layers["unet"], text_encoder_lora_layers=layers["text_encoder"], weight_name=f"{adapter}.safetensors", **options)
    fused(name, adapter)


def seen(layer):
    """The weight that a layer's outputs show."""
    bias = 0 if layer.bias is None else layer.bias
    if isinstance(layer, torch.nn.Linear):
        return (layer(torch.eye(layer.in_features)) - bias).T
    # One channel after the other lights up in the middle: what comes out around it is the kernel, turned by half.
    channels, size = layer.in_channels, layer.kernel_size[0]
    lights = torch.zeros(channels, channels, size, size)
    lights[range(channels), range(channels), size // 2, size // 2] = 1
    out = layer(lights) - (0 if layer.bias is None else bias.reshape(-1, 1, 1))
    return out.flip(2, 3).transpose(0, 1)


def lycoris(name, adapter, algorithm, pattern, dim=4, **options):
    from lycoris import LycorisNetwork, create_lycoris

    RANDOM.manual_seed(8)
    unet = load(name)["unet"]
    LycorisNetwork.apply_preset({"target_module": [], "target_name": [m for m, l in unet.named_modules() if re.search(pattern, m) and hasattr(l, "weight")], "enable_conv": True})
    network = create_lycoris(unet, 1.0, linear_dim=dim, linear_alpha=dim / 2, conv_dim=2, conv_alpha=1.0, algo=algorithm, **options)
    network.apply_to()
    with torch.no_grad():
        for key, p in network.named_parameters():
            if "dora_scale" in key:
                p.mul_(1 + draw(*p.shape, sigma=0.1).abs())
            elif p.ndim > 0 and algorithm != "full":
                p.copy_(draw(*p.shape))
            elif p.ndim > 0:
                # These are the weights themselves by now.
                p.add_(draw(*p.shape, sigma=0.02))
    network.save_weights(str(ROOT / name / f"{adapter}.safetensors"), torch.float32, {})
    if algorithm in ("loha", "lokr"):
        # merge_to counts their factor twice; the forward pass, which is what was trained, counts it once.
        layers = {module.lora_name: module.org_module[0] for module in network.loras}
        with torch.no_grad():
            pairs = [(layer, seen(layer)) for layer in layers.values()]
            network.restore()
            for layer, weight in pairs:
                layer.weight.copy_(weight)
    else:
        network.restore()
        network.merge_to(1.0)
    store(name, adapter, {"unet": unet})


def flux(adapter):
    """kohya's file for Flux has the names that the transformer was published with. What diffusers' own conversion makes of it is added to its weights."""
    RANDOM.manual_seed(13)
    model = randomize(FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12, pooled_projection_dim=8,
        guidance_embeds=True, axes_dims_rope=(2, 2, 4)))
    model.save_pretrained(ROOT / "flux/transformer")
    weights, width = written("flux", "transformer"), 16
    shapes = {"img_in": (width, 4), "txt_in": (width, 12), "vector_in_in_layer": (width, 8), "guidance_in_out_layer": (width, width), "time_in_in_layer": (width, 256)}
    for stream in ("img", "txt"):
        for name, shape in {"attn_qkv": (3 * width, width), "attn_proj": (width, width), "mlp_0": (4 * width, width), "mlp_2": (width, 4 * width), "mod_lin": (6 * width, width)}.items():
            shapes[f"double_blocks_0_{stream}_{name}"] = shape
    for block in (0, 1):
        shapes |= {f"single_blocks_{block}_{name}": shape for name, shape in {"linear1": (7 * width, width), "linear2": (width, 5 * width), "modulation_lin": (3 * width, width)}.items()}
    tensors = {}
    for name, (outputs, inputs) in shapes.items():
        tensors[f"lora_unet_{name}.lora_down.weight"] = draw(2, inputs)
        tensors[f"lora_unet_{name}.lora_up.weight"] = draw(outputs, 2)
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(3.0)
    save_file(tensors, ROOT / "flux" / f"{adapter}.safetensors", {"ss_network_module": "networks.lora_flux"})
    # Sizes of a single block's pieces are those of the real model in the conversion, so these are cut here as it does.
    converted = _convert_kohya_flux_lora_to_diffusers({key: value.clone() for key, value in tensors.items() if "linear1" not in key})
    for block in (0, 1):
        down, up = (tensors[f"lora_unet_single_blocks_{block}_linear1.lora_{end}.weight"] for end in ("down", "up"))
        pieces = [f"single_transformer_blocks.{block}.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
        for path, own in zip(pieces, torch.split(up, [len(weights[f"{path}.weight"]) for path in pieces])):
            converted |= {f"{path}.lora_A.weight": 1.5 * down, f"{path}.lora_B.weight": own}
    changed = {}
    for key in (key for key in converted if key.endswith(".lora_A.weight")):
        path = key.removesuffix(".lora_A.weight").removeprefix("transformer.")
        product = converted[key.replace("lora_A", "lora_B")].double() @ converted[key].double()
        changed[f"{path}.weight"] = (weights[f"{path}.weight"].double() + product).float()
    save_file(changed, ROOT / "flux" / f"{adapter}.transformer.safetensors")


for name in ["sd", "sdxl"]:
    make(name)
ATTENTION, TEXT = r"attn\d\.to_(q|v|out\.0)$|ff\.net\.2$|proj_in$", r"self_attn\.(k|out)_proj$|mlp\.fc2$"
kohya("sd", "kohya", {"unet": ATTENTION, "text_encoder": TEXT})
kohya("sd", "kohya-conv", {"unet": r"down_blocks\.1\.resnets\.0\.(conv1|conv_shortcut|time_emb_proj)$"}, alphas=False)
kohya("sdxl", "kohya", {"unet": ATTENTION + r"|resnets\.0\.(conv1|conv_shortcut)$", "text_encoder": TEXT, "text_encoder_2": TEXT})
diffusers_file("sd", "diffusers", False)
diffusers_file("sd", "diffusers-old", True)
lycoris("sd", "locon", "locon", r"mid_block.*(attn1\.to_q|resnets\.0\.conv1)$")
lycoris("sd", "locon-tucker", "locon", r"mid_block.*(attn1\.to_q|resnets\.0\.conv1)$", use_tucker=True)
lycoris("sd", "locon-dora", "locon", r"mid_block.*(attn1\.to_q|resnets\.0\.conv1)$", dora_wd=True, wd_on_output=True)
lycoris("sd", "loha", "loha", r"mid_block.*attn1\.to_(q|k)$")
lycoris("sd", "lokr", "lokr", r"mid_block.*(attn1\.to_(q|k)|ff\.net\.2)$", factor=4)
lycoris("sd", "lokr-full", "lokr", r"mid_block.*attn1\.to_q$", full_matrix=True, factor=4)
lycoris("sd", "lokr-low", "lokr", r"mid_block.*(attn1\.to_(q|k)|ff\.net\.2)$", dim=2, factor=2)
CONV = r"mid_block.*resnets\.0\.conv1$"
lycoris("sd", "loha-conv", "loha", CONV)
lycoris("sd", "loha-tucker", "loha", CONV, use_tucker=True)
lycoris("sd", "lokr-conv", "lokr", CONV, factor=2)
lycoris("sd", "lokr-tucker", "lokr", CONV, factor=2, use_tucker=True)
lycoris("sd", "full", "full", r"mid_block.*(attn1\.to_(q|out\.0)|resnets\.0\.conv1)$")
flux("kohya")
