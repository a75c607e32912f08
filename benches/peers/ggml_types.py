"""Decoding and encoding of ggml's types: qmerge beside libggml, nanoseconds per value on one thread.

    python3 benches/peers/ggml_types.py PATH/libggml-base.so [EXAMPLE]

EXAMPLE is the built `ggml_types` (by default cargo builds and runs it; built in parts that are not optimized together, its loops are no vectors). The fastest of several runs counts, and the two take turns within one run of
this script. ggml's library as its packages have it is built for any x86-64; that is what llama-quantize decodes and encodes with.
"""

import ctypes
import subprocess
import sys
import time

import numpy as np

TYPES = {
    "q4_0": (2, 32, 18), "q4_1": (3, 32, 20), "q5_0": (6, 32, 22), "q5_1": (7, 32, 24), "q8_0": (8, 32, 34), "q2_K": (10, 256, 84),
    "q3_K": (11, 256, 110), "q4_K": (12, 256, 144), "q5_K": (13, 256, 176), "q6_K": (14, 256, 210), "iq4_nl": (20, 32, 18),
    "iq4_xs": (23, 256, 136), "tq1_0": (34, 256, 54), "tq2_0": (35, 256, 66), "mxfp4": (39, 32, 17), "nvfp4": (40, 64, 36),
    "q1_0": (41, 128, 18), "q2_0": (42, 64, 18),
}
ROWS, COLS, RUNS = 64, 1024, 15
# What qmerge's benchmark has.
INDEX = np.arange(ROWS * COLS, dtype=np.int64)
VALUES = ((INDEX * 7919 % 1009).astype(np.float32) - np.float32(504)) * (INDEX * 31 % 127).astype(np.float32) * np.float32(1e-6)


def fastest(run):
    times = []
    for _ in range(RUNS):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return min(times) / VALUES.size


def of_ggml(library):
    ggml = ctypes.CDLL(library)
    quantize = ggml.ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    importance = np.ones(COLS, np.float32)
    found = {}
    for name, (number, elements, size) in TYPES.items():
        blocks = np.zeros(VALUES.size // elements * size, np.uint8)
        out = np.zeros(VALUES.size, np.float32)
        decode = getattr(ggml, f"dequantize_row_{name}")
        decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        encode = lambda weights: quantize(number, VALUES.ctypes.data, blocks.ctypes.data, 0, ROWS, COLS, weights)
        found[name.lower(), "encode"] = fastest(lambda: encode(None))
        found[name.lower(), "decode"] = fastest(lambda: decode(blocks.ctypes.data, out.ctypes.data, VALUES.size))
        found[name.lower(), "encode by importance"] = fastest(lambda: encode(importance.ctypes.data))
    return found


def of_qmerge(program):
    lines = subprocess.run(program, check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [line.split("\t") for line in lines]
    return {(name.removeprefix("gguf-"), rest.rsplit(" ", 1)[0]): float(rest.rsplit(" ", 1)[1]) for name, rest in rows}


def main():
    library, *program = sys.argv[1:]
    program = program or ["cargo", "run", "--release", "--quiet", "-p", "qmerge", "--features", "internals", "--example", "ggml_types"]
    ours, theirs = {}, {}
    for _ in range(3):
        for best, found in ((ours, of_qmerge(program)), (theirs, of_ggml(library))):
            for key, nanoseconds in found.items():
                best[key] = min(nanoseconds, best.get(key, nanoseconds))
    print("| type | decode | ggml | encode | ggml | by importance | ggml |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name in (name.lower() for name in TYPES):
        cells = [f"{of[name, what]:.2f}" for what in ("decode", "encode", "encode by importance") for of in (ours, theirs)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
