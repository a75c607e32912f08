"""Folders of tiny random models, and what llama.cpp makes of them: its converter and llama-quantize, whose files are known by their hashes.

    python gguf_files.py LLAMA_CPP ../gguf/made      needs torch, transformers, sentencepiece, tokenizers, gguf and llama-cpp-python

LLAMA_CPP is a checkout of the release that llama-cpp-python has. Of the keys that the converter takes from a model card or from the folder's name, only `general.name` and
`general.size_label` are written. It knows a tokenizer by a hash, and a random one not at all, so it is told the rule's name. Written with the llama.cpp of llama-cpp-python 0.3.36.

`again.json` has what llama-quantize makes of its own file. `types.json` has the types that llama-quantize gives to the tensors of models of two rows, by model and file type: a letter for each layer's `attn_v` and `ffn_down`, and for what does not
depend on the layer.
"""

import ctypes
import hashlib
import json
import os
import pathlib
import runpy
import sys

import numpy
import torch

LLAMA_CPP, FOLDER = os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2])
sys.path[:0] = [LLAMA_CPP, os.path.join(LLAMA_CPP, "gguf-py")]

import gguf  # noqa: E402
import llama_cpp  # noqa: E402
import sentencepiece  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402

import conversion.base as base  # noqa: E402
import conversion.hunyuan as hunyuan  # noqa: E402
import gguf_families  # noqa: E402
import gguf_gemma  # noqa: E402
import gguf_mixtures  # noqa: E402
import gguf_towers  # noqa: E402

FILE_TYPES = dict(q4_0=2, q4_1=3, q8_0=7, q5_0=8, q5_1=9, q2_k=10, q3_k_s=11, q3_k_m=12, q3_k_l=13, q4_k_s=14, q4_k_m=15, q5_k_s=16, q5_k_m=17, q6_k=18, iq4_nl=25, iq4_xs=30)
TEXT = ["The quick brown fox jumps over the lazy dog. " * 3, "In the beginning was the word, and numbers 123 456 7890 too.\n", "Größe naïve café élève. It's what they'll've said!\n"] * 4
ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


def byte_pairs(folder, pattern, special, config, begins=None, ignore_merges=False, digits=False, tokens=288):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    cut = [] if isinstance(pattern, list) else [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if isinstance(pattern, list):
        cut = [*(pre_tokenizers.Split(Regex(own), "isolated") for own in pattern), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if digits:
        cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(["▁tool"])
    if begins:
        id_ = tokenizer.token_to_id(begins)
        template = processors.TemplateProcessing(single=f"{begins} $A", pair=f"{begins} $A {begins}:1 $B:1", special_tokens=[(begins, id_)])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    else:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}, indent=1))
    return tokenizer.get_vocab_size()


def pieces(folder, config, added, tokens=330):
    text = folder / "text"
    text.write_text("".join(TEXT))
    sentencepiece.SentencePieceTrainer.train(input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=tokens, model_type="bpe", byte_fallback=True, normalization_rule_name="identity", user_defined_symbols=["<turn>"], minloglevel=2)
    text.unlink()
    (folder / "tokenizer.vocab").unlink()
    decoder = {str(id_): {"content": content, "special": special} for id_, content, special in added}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder, **config}, indent=1))
    return tokens


def weights(folder, config, seed, head=True, bias=(), norms=(), qk_norm=False, fused=False, experts=None):
    random = torch.Generator().manual_seed(seed)
    hidden, wide, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    dim = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = dim * config["num_attention_heads"], dim * config["num_key_value_heads"]
    tensors = {}

    def put(name, *shape, near=0.0, scale=0.05):
        tensors[name] = (near + scale * torch.randn(*shape, generator=random)).to(torch.bfloat16)

    put("model.embed_tokens.weight", config["vocab_size"], hidden)
    for layer in range(layers):
        name = f"model.layers.{layer}."
        if fused:
            put(name + "self_attn.qkv_proj.weight", q + 2 * kv, hidden)
            put(name + "mlp.gate_up_proj.weight", 2 * wide, hidden)
        else:
            for part, rows in (("q", q), ("k", kv), ("v", kv)):
                put(f"{name}self_attn.{part}_proj.weight", rows, hidden)
                if part in bias:
                    put(f"{name}self_attn.{part}_proj.bias", rows)
            if not experts:
                put(name + "mlp.gate_proj.weight", wide, hidden)
                put(name + "mlp.up_proj.weight", wide, hidden)
        put(name + "self_attn.o_proj.weight", hidden, q)
        if experts:
            module, count, parts = experts
            put(f"{name}{module}.gate.weight", count, hidden)
            width = config.get("moe_intermediate_size", wide)
            for expert in range(count):
                for part, shape in zip(parts, ((width, hidden), (width, hidden), (hidden, width))):
                    put(f"{name}{module}.experts.{expert}.{part}.weight", *shape)
            if shared := config.get("shared_expert_intermediate_size"):
                for part, shape in (("gate_proj", (shared, hidden)), ("up_proj", (shared, hidden)), ("down_proj", (hidden, shared))):
                    put(f"{name}{module}.shared_expert.{part}.weight", *shape)
                put(f"{name}{module}.shared_expert_gate.weight", 1, hidden)
        else:
            put(name + "mlp.down_proj.weight", hidden, wide)
        for norm in ("input_layernorm", "post_attention_layernorm", *norms):
            put(f"{name}{norm}.weight", hidden, near=0.9)
        if qk_norm:
            for norm in ("q_norm", "k_norm"):
                put(f"{name}self_attn.{norm}.weight", dim, near=0.9)
    put("model.norm.weight", hidden, near=0.9)
    if head:
        put("lm_head.weight", config["vocab_size"], hidden)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def sizes(hidden, heads, kv_heads, wide, layers, **more):
    return dict(hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=wide, num_hidden_layers=layers, max_position_embeddings=512, **more)


def models_():
    """Writes all folders; returns the names of the rules that tokenizers cut by."""

    def folder(name):
        (FOLDER / name).mkdir(parents=True, exist_ok=True)
        return FOLDER / name

    # Rows of whole super-blocks, Llama 3's rope, tied embeddings, published sampling.
    to = folder("llama-wide")
    special = ["<|begin|>", "<|end|>", "<|pad|>"]
    config = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[2], "chat_template": TEMPLATE}
    tokens = byte_pairs(to, ENGLISH % "{1,3}", special, config, begins=special[0], ignore_merges=True)
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = dict(model_type="llama", architectures=["LlamaForCausalLM"], **sizes(256, 4, 1, 64, 1), head_dim=16, vocab_size=tokens + 5, rope_theta=500000.0, rope_scaling=rope, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1, eos_token_id=[1, 2])
    weights(to, config, 1, head=False)
    (to / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "top_k": 40, "do_sample": True}))

    # SentencePiece, biases, a linear rope.
    to = folder("llama-pieces")
    added = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", True), (330, "<|im_end|>", False), (331, "▁▁word", False)]
    tokens = pieces(to, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False, "add_prefix_space": True}, added) + 3
    config = dict(model_type="llama", architectures=["LlamaForCausalLM"], **sizes(32, 4, 2, 64, 1), vocab_size=tokens, rope_scaling={"type": "linear", "factor": 4.0}, bos_token_id=1, eos_token_id=2, attention_bias=True)
    weights(to, config, 2, bias="qkv")

    to = folder("qwen2")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    config = {"bos_token": None, "eos_token": special[2], "pad_token": special[0], "add_prefix_space": False}
    tokens = byte_pairs(to, ENGLISH % "", special, config)
    (to / "chat_template.jinja").write_text(TEMPLATE)
    config = dict(model_type="qwen2", architectures=["Qwen2ForCausalLM"], **sizes(64, 4, 2, 96, 2), vocab_size=tokens + 9, rope_theta=1000000.0, tie_word_embeddings=True, bos_token_id=288, eos_token_id=290)
    weights(to, config, 3, head=False, bias="qkv")

    to = folder("qwen3")
    tokens = byte_pairs(to, ENGLISH % "", special, {"eos_token": special[2], "pad_token": special[0]})
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1000000.0}
    config = dict(model_type="qwen3", architectures=["Qwen3ForCausalLM"], **sizes(64, 2, 1, 96, 1), head_dim=64, vocab_size=tokens, rope_parameters=rope, tie_word_embeddings=False, eos_token_id=290)
    weights(to, config, 4, qk_norm=True)

    around = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
    added = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", True), (3, "<turn>", False)]
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": [{"name": "default", "template": TEMPLATE}, {"name": "tool use", "template": "{{ tools }}"}]}
    for name, seed, norms, qk_norm, more in (
        ("gemma", 5, (), False, dict(architectures=["GemmaForCausalLM"])),
        ("gemma2", 6, around, False, dict(architectures=["Gemma2ForCausalLM"], query_pre_attn_scalar=32, sliding_window=128, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)),
        ("gemma3", 7, around, True, dict(architectures=["Gemma3ForCausalLM"], query_pre_attn_scalar=32, sliding_window=128, rope_theta=1000000.0, rope_local_base_freq=10000.0)),
    ):
        to = folder(name)
        tokens = pieces(to, names, added)
        config = dict(model_type="gemma3_text" if name == "gemma3" else name, **sizes(32, 2, 1, 64, 1), head_dim=32, vocab_size=tokens, bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=True, **more)
        weights(to, config, seed, head=name == "gemma", norms=norms, qk_norm=qk_norm)
        if name == "gemma":
            # A copy of what it is tied to.
            from safetensors.torch import load_file

            tensors = load_file(to / "model.safetensors")
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
            save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})

    to = folder("phi3")
    added = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", False), (330, "<|end|>", False)]
    tokens = pieces(to, {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}, added) + 4
    rope = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.5, 3.5, 4.5]}
    config = dict(model_type="phi3", architectures=["Phi3ForCausalLM"], **sizes(32, 4, 2, 64, 1), vocab_size=tokens, original_max_position_embeddings=128, rope_scaling=rope, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    weights(to, config, 8, fused=True)

    # Experts: eight, whose keys and values llama-quantize gives more bits, and fewer; more than ten, whose numbers have an order of their own.
    to = folder("mixtral")
    added = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", True)]
    tokens = pieces(to, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}, added)
    config = dict(model_type="mixtral", architectures=["MixtralForCausalLM"], **sizes(32, 4, 2, 32, 2), vocab_size=tokens, num_local_experts=8, num_experts_per_tok=2, rope_theta=1000000.0, rms_norm_eps=1e-5, sliding_window=None, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    weights(to, config, 9, experts=("block_sparse_moe", 8, ("w1", "w3", "w2")))

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    for name, seed, count, bias, more in (
        ("qwen2moe", 10, 3, "qkv", dict(model_type="qwen2_moe", architectures=["Qwen2MoeForCausalLM"], shared_expert_intermediate_size=64, norm_topk_prob=False)),
        ("qwen3moe", 11, 12, "", dict(model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], head_dim=16, norm_topk_prob=True, mlp_only_layers=[], decoder_sparse_step=1)),
    ):
        to = folder(name)
        tokens = byte_pairs(to, ENGLISH % "", special, {"eos_token": special[2], "pad_token": special[0]})
        config = dict(**sizes(32, 4, 2, 96, 2), vocab_size=tokens, rope_theta=1000000.0, moe_intermediate_size=32, num_experts=count, num_experts_per_tok=2, tie_word_embeddings=False, eos_token_id=290, **more)
        weights(to, config, seed, bias=bias, qk_norm=count > 8, experts=("mlp", count, ("gate_proj", "up_proj", "down_proj")))
    gguf_gemma.write(folder, TEXT, pieces)
    return {"llama-wide": "llama-bpe", **gguf_families.write(folder, byte_pairs, pieces), **gguf_mixtures.write(folder, byte_pairs, pieces), **gguf_towers.write(folder, TEXT, byte_pairs, pieces), **{name: "qwen2" for name in ("qwen2", "qwen3", "qwen2moe", "qwen3moe")}}


def set_meta(self, writer):
    for name in ("top_k", "top_p", "temp"):
        value = getattr(self, f"sampling_{name}")
        if value is not None:
            getattr(writer, f"add_sampling_{name}")(value)
    writer.add_name(self.name)
    writer.add_size_label(self.size_label)


def hparams(folder, is_mistral_format):
    """The configuration as transformers has it; of GPT-NeoX with the names that it had in older releases, which are the converter's."""
    config = transformers.AutoConfig.from_pretrained(folder).to_dict()
    own = json.loads((folder / "config.json").read_text())
    return {**config, **own} if own["model_type"] == "gpt_neox" else config


def convert(folder, out, outtype, pre):
    base.ModelBase.load_hparams = staticmethod(hparams)
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    # Of HunYuan's experts it expects a tokenizer that is code.
    hunyuan.HunYuanMoEModel.set_vocab = base.TextModel._set_vocab_gpt2
    gguf.Metadata.set_gguf_meta_model = set_meta
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outtype", outtype, "--outfile", str(out), *(["--no-mtp"] if folder.name in (*gguf_mixtures.PREDICTS_FURTHER, "qwen35sees") else [])]
    runpy.run_path(os.path.join(LLAMA_CPP, "convert_hf_to_gguf.py"), run_name="__main__")


def quantize(source, out, number, importance=None, again=False):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = number, 1, again
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance or {}) + 1))()
    for entry, (name, values) in zip(entries, (importance or {}).items()):
        entry.name, entry.data, entry.size = name.encode(), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), len(values)
    if importance:
        params.imatrix = entries
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)) != 0:
        raise SystemExit("llama_model_quantize refused")


def importance_of(path, names):
    """An importance matrix of some tensors, written as llama-imatrix does."""
    random = numpy.random.default_rng(9)
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", 3)
    means = {}
    for name, width in names:
        sums = (random.random(width) ** 4 * 100).astype(numpy.float32)
        writer.add_tensor(name + ".in_sum2", sums.reshape(1, -1))
        writer.add_tensor(name + ".counts", numpy.array([[37.0]], dtype=numpy.float32))
        means[name] = sums / numpy.float32(37)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return means


def types():
    """What llama-quantize gives to tensors of two rows, by model and file type."""
    letters, cases = {}, {}
    for name, arch, layers, heads, kv_heads, width, head, weighted in (
        ("small", "llama", 5, 4, 4, 256, True, False),
        ("odd", "llama", 30, 9, 3, 576, False, False),
        ("8b", "llama", 32, 32, 8, 512, True, False),
        ("8b, weighted", "llama", 32, 32, 8, 512, True, True),
        ("70b", "llama", 80, 64, 8, 256, True, False),
        ("72b", "qwen2", 80, 8, 8, 256, True, False),
        ("tied", "qwen3", 28, 16, 8, 256, False, True),
        ("falcon", "falcon", 60, 64, 8, 256, True, False),
    ):
        writer = gguf.GGUFWriter("types.gguf", arch)
        writer.add_block_count(layers)
        for add, value in (("context_length", 8), ("embedding_length", width), ("feed_forward_length", width), ("head_count", heads), ("head_count_kv", kv_heads)):
            getattr(writer, f"add_{add}")(value)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_layer_norm_eps(1e-5)
        writer.add_vocab_size(1)
        parts = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
        if arch == "falcon":
            parts = ["attn_qkv", "attn_output", "ffn_up", "ffn_down"]
        names = ["token_embd", *(["output"] if head else []), *(f"blk.{layer}.{part}" for layer in range(layers) for part in parts)]
        for tensor in names:
            writer.add_tensor(tensor + ".weight", numpy.ones((2, width), dtype=numpy.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        importance = {tensor + ".weight": numpy.ones(width, dtype=numpy.float32) for tensor in names} if weighted else None
        found = {}
        for file_type, number in FILE_TYPES.items():
            quantize("types.gguf", "types-out.gguf", number, importance)
            own = {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader("types-out.gguf").tensors}
            lists = {part: [own[f"blk.{layer}.{part}.weight"] for layer in range(layers)] for part in parts}
            found[file_type] = {"token_embd": own["token_embd.weight"], **({"output": own["output.weight"]} if head else {})}
            for part, all_ in lists.items():
                short = "".join(letters.setdefault(one, "abcdefghijklmnopqrstuvwxyz"[len(letters)]) for one in all_)
                found[file_type][part] = short[0] if len(set(short)) == 1 else short
        cases[name] = dict(layers=layers, shared=heads // kv_heads, width=width, head=head, weighted=weighted, large=layers == 80, **({"falcon": True} if arch == "falcon" else {}), types=found)
    for file in ("types.gguf", "types-out.gguf"):
        os.remove(file)
    return {"letters": {letter: name for name, letter in letters.items()}, "models": cases}


def main():
    torch.manual_seed(0)
    rules = models_()
    expected = {}
    hashed = lambda path: hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    for folder in sorted(path for path in FOLDER.iterdir() if path.is_dir()):
        name = folder.name
        own = expected[name] = {}
        for outtype in ("f32", "f16", "bf16"):
            convert(folder, f"{outtype}.gguf", outtype, rules.get(name))
            own[outtype] = hashed(f"{outtype}.gguf")
        for file_type, number in FILE_TYPES.items():
            if name in ("llama-wide", "mixtral") or file_type in ("q8_0", "q4_k_m"):
                quantize("bf16.gguf", "out.gguf", number)
                own[file_type] = hashed("out.gguf")
        if name == "llama-wide":
            tensors = [(tensor.name, int(tensor.shape[0])) for tensor in gguf.GGUFReader("bf16.gguf").tensors if len(tensor.shape) == 2 and "attn_k" not in tensor.name]
            means = importance_of(FOLDER / "imatrix.gguf", tensors)
            for file_type in FILE_TYPES:
                quantize("bf16.gguf", "out.gguf", FILE_TYPES[file_type], means)
                data = gguf.GGUFReader("out.gguf")
                own[f"{file_type}, weighted"] = hashlib.sha256(b"".join(tensor.name.encode() + tensor.data.tobytes() for tensor in data.tensors)).hexdigest()
            # Files with codes that take other types.
            quantize("bf16.gguf", "codes.gguf", FILE_TYPES["q4_k_m"])
            own["again"] = {}
            for file_type in ("f32", "f16", "q4_0", "q8_0", "q2_k", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "iq4_xs", "bf16"):
                number = {**FILE_TYPES, "f32": 0, "f16": 1, "bf16": 32}[file_type]
                quantize("codes.gguf", "out.gguf", number, again=True)
                own["again"][file_type] = hashed("out.gguf")
    again = {f"{name}, q4_k_m": own.pop("again") for name, own in expected.items() if "again" in own}
    (FOLDER / "again.json").write_text(json.dumps(again, indent=1) + "\n")
    for file in ("f32.gguf", "f16.gguf", "bf16.gguf", "codes.gguf", "out.gguf"):
        os.remove(file)
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    (FOLDER / "types.json").write_text(json.dumps(types()) + "\n")


main()
