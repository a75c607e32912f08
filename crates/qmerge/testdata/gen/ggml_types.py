"""Blocks of ggml's types, decoded and encoded by ggml itself.

    python ggml_types.py libggml-base.so ../gguf      needs numpy and safetensors

The library has to be one for any x86-64, as the package llama-cpp-python builds it with `-C cmake.args=-DGGML_NATIVE=OFF`: where products and sums are
contracted, some blocks of K-quants come out differently. Written with ggml 0.25.3.
"""

import ctypes
import pathlib
import sys

import numpy
from safetensors.numpy import save_file

# Number, elements and bytes of a block, and whether it can be encoded and takes account of an importance matrix.
TYPES = {
    "q4_0": (2, 32, 18, True, True), "q4_1": (3, 32, 20, True, True), "q5_0": (6, 32, 22, True, True), "q5_1": (7, 32, 24, True, True),
    "q8_0": (8, 32, 34, True, False), "q2_K": (10, 256, 84, True, True), "q3_K": (11, 256, 110, True, True), "q4_K": (12, 256, 144, True, True),
    "q5_K": (13, 256, 176, True, True), "q6_K": (14, 256, 210, True, True), "iq2_xxs": (16, 256, 66, False, False), "iq2_xs": (17, 256, 74, False, False),
    "iq3_xxs": (18, 256, 98, False, False), "iq1_s": (19, 256, 50, False, False), "iq4_nl": (20, 32, 18, True, True), "iq3_s": (21, 256, 110, False, False),
    "iq2_s": (22, 256, 82, False, False), "iq4_xs": (23, 256, 136, True, True), "iq1_m": (29, 256, 56, False, False), "tq1_0": (34, 256, 54, True, False),
    "tq2_0": (35, 256, 66, True, False), "mxfp4": (39, 32, 17, True, False), "nvfp4": (40, 64, 36, True, False), "q1_0": (41, 128, 18, True, False),
    "q2_0": (42, 64, 18, True, False),
}


def normal(random, *shape, scale=0.02):
    return (scale * random.normal(size=shape)).astype(numpy.float32)


def hard_rows(random):
    """Rows of 256 that encoders may stumble over."""
    zero = numpy.zeros(256, numpy.float32)
    constant = numpy.where(numpy.arange(256) < 128, 0.0125, -0.0125)
    outliers = normal(random, 256)
    outliers[:64], outliers[70], outliers[200] = 0, 1.5, -0.9
    ties = random.integers(-8, 9, 256) / 16
    positive = abs(normal(random, 256)) + 0.01
    bf16 = (normal(random, 256).view(numpy.uint32) & 0xFFFF0000).view(numpy.float32)
    rows = [zero, constant, outliers, normal(random, 256, scale=1e-7), ties, positive, bf16, normal(random, 256, scale=1e-41)]
    return numpy.stack(rows).astype(numpy.float32)


def next_to_powers():
    """Numbers some steps below a power of two, where a logarithm in f32 rounds up or does not."""
    powers = numpy.array([2.0**k for k in [*range(-120, 128, 13), -3, -2, -1, 0, 1, 2, 3]], numpy.float32)
    steps = numpy.array([0, 1, 2, 3, 5, 6, 11, 12, 22, 23, 33, 34, 44, 45, 65, 66, 90], numpy.uint32)
    return (powers.view(numpy.uint32)[:, None] - steps).reshape(-1).view(numpy.float32)


def main():
    ggml, folder = ctypes.CDLL(sys.argv[1]), pathlib.Path(sys.argv[2])
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + 3 * [ctypes.c_int64] + [ctypes.c_void_p]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    random = numpy.random.default_rng(7)

    def encode(name, values, importance=None):
        number, elements, size = TYPES[name][:3]
        rows, cols = values.shape
        out = numpy.zeros((rows, cols // elements * size), numpy.uint8)
        weights = None if importance is None else importance.ctypes.data
        ggml.ggml_quantize_chunk(number, values.ctypes.data, out.ctypes.data, 0, rows, cols, weights)
        return out

    decoded = {}
    for name, (_, elements, size, _, _) in TYPES.items():
        blocks = random.integers(0, 256, (768 // elements, size), dtype=numpy.uint8)
        values = numpy.zeros(768, numpy.float32)
        decode = getattr(ggml, f"dequantize_row_{name}")
        decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        decode(blocks.ctypes.data, values.ctypes.data, values.size)
        decoded |= {f"{name.lower()}.blocks": blocks, f"{name.lower()}.values": values}
    save_file(decoded, folder / "decode.safetensors")

    rows = (0.02 * random.standard_t(4, (3, 512))).astype(numpy.float32)
    cases = {"random": rows, "edge": hard_rows(random)}
    encoded = {}
    for case, values in cases.items():
        importance = numpy.exp(random.normal(size=values.shape[1])).astype(numpy.float32)
        encoded |= {f"{case}.values": values, f"{case}.importance": importance}
        for name, (_, _, _, is_written, is_weighted) in TYPES.items():
            if is_written:
                encoded[f"{name.lower()}.{case}"] = encode(name, values)
            if is_weighted:
                encoded[f"{name.lower()}.{case}.weighted"] = encode(name, values, importance)
    most = next_to_powers()
    alone = numpy.zeros((most.size, 32), numpy.float32)
    alone[:, 0] = most
    encoded |= {"mxfp4.edges.values": most, "mxfp4.edges.exponents": encode("mxfp4", alone)[:, 0].copy()}
    save_file(encoded, folder / "encode.safetensors")


if __name__ == "__main__":
    main()
