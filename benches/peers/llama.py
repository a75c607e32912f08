"""llama.cpp as the scripts beside this file call it, through the library that the package llama-cpp-py-sync brings (built for any x86-64; needs glibc 2.38).

    llama.py quantize FROM.gguf TO.gguf LIKE.gguf

quantizes a file to the types that the tensors of another have, as `llama-quantize --allow-requantize --tensor-type NAME=TYPE ...` does.
"""

import os
import re
import sys

import numpy as np
from llama_cpp_py_sync import __llama_cpp_tag__ as VERSION  # noqa: F401
from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

ffi, lib = get_ffi(), get_lib()


@ffi.callback("void(int, const char *, void *)")
def silent(_level, _text, _data):
    """What libllama tells of each tensor."""


lib.llama_log_set(ffi.cast("ggml_log_callback", silent), ffi.NULL)
lib.llama_backend_init()


class Model:
    """A file that is loaded, with room for so many tokens; `together` of a text are computed at a time. Repacked weights and flash attention are llama.cpp's default."""

    def __init__(self, path, context, together=None, repacked=True, flash_attention=True):
        loading = lib.llama_model_default_params()
        loading.use_extra_bufts = repacked
        self.model = lib.llama_model_load_from_file(os.fsencode(path), loading)
        if self.model == ffi.NULL:
            raise SystemExit(f"{path}: llama.cpp does not load it")
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = context
        params.n_ubatch = together or context
        params.flash_attn_type = -1 if flash_attention else 0
        params.n_threads = params.n_threads_batch = os.cpu_count()
        self.context = lib.llama_init_from_model(self.model, params)
        self.vocabulary = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocabulary)
        self.begin = self.tokens("", True)
        self.at = 0

    def close(self):
        lib.llama_free(self.context)
        lib.llama_model_free(self.model)

    def tokens(self, text, special=False):
        """The tokens of a text, behind those that a text begins with."""
        data = text.encode()
        found = ffi.new("llama_token[]", len(data) + 16)
        number = lib.llama_tokenize(self.vocabulary, data, len(data), found, len(found), special, False)
        return list(found[0:number])

    def text(self, tokens):
        found = ffi.new("char[]", 64 * len(tokens) + 64)
        number = lib.llama_detokenize(self.vocabulary, ffi.new("llama_token[]", tokens), len(tokens), found, len(found), False, True)
        return ffi.buffer(found, number)[:].decode(errors="replace")

    def logits(self, tokens, anew=True):
        """Logits behind each token, (tokens, vocabulary) in f32; of a text, or of how the one before goes on."""
        if anew:
            lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
            self.at = 0
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, self.at + i, 1, 1
            batch.seq_id[i][0] = 0
        status = lib.llama_decode(self.context, batch)
        lib.llama_batch_free(batch)
        if status:
            raise SystemExit(f"llama_decode: {status}")
        self.at += len(tokens)
        values = ffi.buffer(lib.llama_get_logits(self.context), 4 * len(tokens) * self.size)
        return np.frombuffer(values, np.float32).reshape(len(tokens), self.size).copy()

    def loss(self, tokens, window, windows):
        """The mean loss on the first windows of a text, each behind the tokens that a text begins with, and the number of predictions."""
        losses = []
        for first in range(0, min(len(tokens), windows * window) - window + 1, window):
            own = self.begin + tokens[first : first + window]
            logits = self.logits(own)[:-1].astype(np.float64)
            # Of several tokens that a text begins with, the last alone has a continuation that counts.
            skipped = max(len(self.begin) - 1, 0)
            most = logits.max(1, keepdims=True)
            total = np.log(np.exp(logits - most).sum(1)) + most[:, 0]
            losses.extend((total - logits[np.arange(len(own) - 1), own[1:]])[skipped:])
        return float(np.mean(losses)), len(losses)

    def greedy(self, tokens, number):
        """The most likely tokens behind others, one after the other."""
        found = [int(self.logits(tokens)[-1].argmax())]
        while len(found) < number:
            found.append(int(self.logits(found[-1:], anew=False)[-1].argmax()))
        return found

    def along(self, tokens, following):
        """Of tokens that follow others, how many are the most likely where they stand."""
        logits = self.logits(tokens + following)
        return int((logits[len(tokens) - 1 : -1].argmax(1) == np.array(following)).sum())


def quantize(source, out, like):
    import gguf

    reader = gguf.GGUFReader(like)
    types = {tensor.name: int(tensor.tensor_type) for tensor in reader.tensors}
    params = lib.llama_model_quantize_default_params()
    params.nthread, params.allow_requantize = os.cpu_count(), True
    params.ftype = int(reader.get_field("general.file_type").contents())
    for name, field in (("token_embd.weight", "token_embedding_type"), ("output.weight", "output_tensor_type")):
        if name in types:
            setattr(params, field, types[name])
    keep = [ffi.new("char[]", f"^{re.escape(name)}$".encode()) for name in types]
    overrides = ffi.new("struct llama_model_tensor_override[]", len(keep) + 1)
    for override, pattern, number in zip(overrides, keep, types.values()):
        override.pattern, override.type = pattern, number
    params.tt_overrides = overrides
    own = ffi.new("llama_model_quantize_params *", params)
    if lib.llama_model_quantize(os.fsencode(source), os.fsencode(out), own):
        raise SystemExit(f"{source}: llama_model_quantize refused it")
    other = {tensor.name for tensor in gguf.GGUFReader(out).tensors if types[tensor.name] != int(tensor.tensor_type)}
    if other:
        raise SystemExit(f"{out}: other types than {like} in {len(other)} tensors, as {min(other)}")


if __name__ == "__main__":
    {"quantize": quantize}[sys.argv[1]](*sys.argv[2:])
