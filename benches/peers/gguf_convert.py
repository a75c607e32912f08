"""A folder turned into GGUF by qmerge, against llama.cpp's convert_hf_to_gguf.py and llama-quantize: key by key, tensor by tensor, bit by bit.

    pip install llama-cpp-python gguf torch transformers sentencepiece
    python3 benches/peers/gguf_convert.py QMERGE LLAMA_CPP FOLDER [--types bf16,q8_0,q4_k_m] [--imatrix FILE] [--pre NAME] [--work DIR]

QMERGE is the program, LLAMA_CPP a checkout of llama.cpp, of the release that llama-cpp-python has, and FOLDER a model in bf16: the converter's bf16 then holds all that a quantizer sees. llama-quantize is called in
libllama itself (`llama_model_quantize`). The converter knows a tokenizer by a hash; --pre names it where it does not. With --imatrix an importance matrix is given to both, in GGUF or the older form.

Of the keys, those that the converter takes from a model card and from the name of the folder are told of, and are no difference: qmerge writes `general.name` and `general.size_label` alone.
"""

import argparse
import ctypes
import os
import runpy
import subprocess
import sys
import tempfile

import numpy as np

CARD = ("general.basename", "general.finetune", "general.version", "general.organization", "general.author", "general.license", "general.tags", "general.languages", "general.base_model", "general.dataset", "general.description", "general.url", "general.repo_url", "general.source", "general.quantized_by", "general.name", "general.size_label", "quantize.imatrix")


# What libllama tells of each tensor.
SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)


def convert(llama_cpp, folder, out, outtype, pre):
    """The converter, in this process: what it does not know is told."""
    sys.path[:0] = [llama_cpp, os.path.join(llama_cpp, "gguf-py")]
    import conversion.base as base

    if pre:
        base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    sys.argv = ["convert_hf_to_gguf.py", folder, "--outtype", outtype, "--outfile", out]
    runpy.run_path(os.path.join(llama_cpp, "convert_hf_to_gguf.py"), run_name="__main__")


def importances(path):
    """Means by tensor, as llama-quantize reads them."""
    import gguf

    with open(path, "rb") as file:
        if file.read(4) == b"GGUF":
            tensors = {tensor.name: np.array(tensor.data, dtype=np.float32) for tensor in gguf.GGUFReader(path).tensors}
            names = [name[: -len(".in_sum2")] for name in tensors if name.endswith(".in_sum2")]
            means = {}
            for name in names:
                sums, counts = tensors[name + ".in_sum2"].reshape(-1), tensors[name + ".counts"].reshape(-1)
                sums = sums.reshape(len(counts), -1)
                means[name] = np.where(counts[:, None] > 0, sums / np.maximum(counts[:, None], np.float32(1e-30)), np.float32(1)).astype(np.float32).reshape(-1)
            return means
        file.seek(0)
        whole = lambda: int.from_bytes(file.read(4), "little", signed=True)
        means = {}
        for _ in range(whole()):
            name = file.read(whole()).decode()
            calls, count = whole(), whole()
            values = np.frombuffer(file.read(4 * count), dtype="<f4")
            means[name] = values / np.float32(calls) if calls > 0 else values
        return means


def quantize(source, out, number, means):
    import llama_cpp

    llama_cpp.llama_log_set(SILENT, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = number, 2
    if means is not None:
        keep = [(name.encode(), np.ascontiguousarray(values, dtype=np.float32)) for name, values in means.items()]
        entries = (llama_cpp.llama_model_imatrix_data * (len(keep) + 1))()
        for entry, (name, values) in zip(entries, keep):
            entry.name, entry.size = name, len(values)
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)) != 0:
        raise SystemExit(f"llama_model_quantize refused type {number}")


def compare(ours, theirs):
    """Prints what differs. Returns the number of differences."""
    import gguf

    found = 0

    def told(text):
        nonlocal found
        found += 1
        if found <= 12:
            print("   ", text)

    one, other = gguf.GGUFReader(ours), gguf.GGUFReader(theirs)
    keys = lambda reader: {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    own, reference = keys(one), keys(other)
    is_card = lambda name: name.startswith(CARD)
    card = sorted(name for name in own.keys() | reference.keys() if is_card(name) and (name not in own or name not in reference or own[name].contents() != reference[name].contents()))
    for name in [*reference, *(name for name in own if name not in reference)]:
        if is_card(name):
            continue
        if name not in own or name not in reference:
            told(f"key {name}: only {'theirs' if name in reference else 'ours'}: {str((reference.get(name) or own[name]).contents())[:80]}")
        elif own[name].types != reference[name].types:
            told(f"key {name}: type {own[name].types}, theirs {reference[name].types}")
        elif own[name].contents() != reference[name].contents():
            ours_, theirs_ = own[name].contents(), reference[name].contents()
            if isinstance(ours_, list) and len(ours_) == len(theirs_):
                at = [i for i, pair in enumerate(zip(ours_, theirs_)) if pair[0] != pair[1]]
                told(f"key {name}: {len(at)} of {len(ours_)} items, first {at[0]}: {ours_[at[0]]!r}, theirs {theirs_[at[0]]!r}")
            else:
                told(f"key {name}: {str(ours_)[:60]!r}, theirs {str(theirs_)[:60]!r}")
    order = lambda fields: [name for name in fields if not is_card(name) and name in own and name in reference]
    if order(own) != order(reference):
        told("keys stand in another order")
    if [tensor.name for tensor in one.tensors] != [tensor.name for tensor in other.tensors]:
        told("tensors stand in another order, or are others")
    reference = {tensor.name: tensor for tensor in other.tensors}
    for tensor in one.tensors:
        same = reference.get(tensor.name)
        if same is None:
            told(f"{tensor.name}: only ours")
        elif (tensor.tensor_type, list(tensor.shape)) != (same.tensor_type, list(same.shape)):
            told(f"{tensor.name}: {tensor.tensor_type.name} {list(tensor.shape)}, theirs {same.tensor_type.name} {list(same.shape)}")
        elif not np.array_equal(tensor.data.reshape(-1).view(np.uint8), same.data.reshape(-1).view(np.uint8)):
            a, b = tensor.data.reshape(-1).view(np.uint8), same.data.reshape(-1).view(np.uint8)
            told(f"{tensor.name} ({tensor.tensor_type.name}): {np.count_nonzero(a != b)} of {len(a)} bytes")
    size = os.path.getsize(ours), os.path.getsize(theirs)
    print(f"{found} differences; {len(one.tensors)} tensors, {len(own)} keys; {size[0]} and {size[1]} bytes" + (f"; of the card: {', '.join(card)}" if card else ""))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qmerge")
    parser.add_argument("llama_cpp")
    parser.add_argument("folder")
    parser.add_argument("--types", default="f32,f16,bf16,q8_0,q4_0,q4_1,q5_0,q5_1,q6_k,q5_k_m,q5_k_s,q4_k_m,q4_k_s,q3_k_s,q3_k_m,q3_k_l,q2_k,iq4_xs,iq4_nl")
    parser.add_argument("--imatrix")
    parser.add_argument("--pre")
    parser.add_argument("--work", help="a folder for the files (default: a temporary one)")
    args = parser.parse_args()
    numbers = dict(q4_0=2, q4_1=3, q8_0=7, q5_0=8, q5_1=9, q2_k=10, q3_k_s=11, q3_k_m=12, q3_k_l=13, q4_k_s=14, q4_k_m=15, q5_k_s=16, q5_k_m=17, q6_k=18, iq4_nl=25, iq4_xs=30)
    sys.path[:0] = [os.path.join(args.llama_cpp, "gguf-py")]
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        found = 0
        place = lambda name: os.path.join(work, name)
        made = set()

        def reference(outtype):
            if outtype not in made:
                code = f"import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r}); import gguf_convert; gguf_convert.convert({args.llama_cpp!r}, {args.folder!r}, {place(outtype)!r} + '.gguf', {outtype!r}, {args.pre!r})"
                subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL)
                made.add(outtype)
            return place(outtype + ".gguf")

        means = importances(args.imatrix) if args.imatrix else None
        for name in args.types.split(","):
            command = [args.qmerge, "convert", "--base", args.folder, "--to", name, "-o", place("ours.gguf"), "--force", "--quiet"]
            subprocess.run(command + (["--imatrix", args.imatrix] if args.imatrix else []), check=True)
            if name in numbers:
                theirs = place("theirs.gguf")
                quantize(reference("bf16"), theirs, numbers[name], means)
            else:
                theirs = reference(name)
            print(f"{name}: ", end="", flush=True)
            found += compare(place("ours.gguf"), theirs)
            if name in numbers:
                os.remove(theirs)
            elif name != "bf16":
                os.remove(theirs)
                made.discard(name)
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
