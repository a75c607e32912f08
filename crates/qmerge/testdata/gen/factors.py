"""The best approximations of low rank in the metric of a layer's inputs, by numpy's SVD of the dense matrix times a root of H.

    python factors.py ../factors/cases.json      needs numpy
"""

import json
import sys

import numpy

CASES = [(12, 5, 9, 2), (9, 6, 14, 1), (20, 8, 10, 7), (6, 4, 6, 4)]


def case(outputs, inner, inputs, rank, seed):
    random = numpy.random.default_rng(seed)
    left = random.normal(size=(outputs, inner)).astype(numpy.float32)
    right = (random.normal(size=(inner, inputs)) * numpy.geomspace(1, 0.05, inner)[:, None]).astype(numpy.float32)
    x = random.normal(size=(40, inputs)) @ numpy.diag(numpy.geomspace(3, 0.1, inputs)) + random.normal(size=(40, 1))
    moments = (x.T @ x / len(x)).astype(numpy.float32)
    found = {"outputs": outputs, "inner": inner, "inputs": inputs, "rank": rank, "scale": 1.5}
    found |= {name: m.ravel().tolist() for name, m in [("left", left), ("right", right), ("moments", moments)]}
    dense = 1.5 * left.astype(float) @ right.astype(float)
    # The metric is damped by 0.003 of the mean diagonal.
    damped = moments.astype(float) + 0.003 * numpy.trace(moments.astype(float)) / inputs * numpy.eye(inputs)
    for name, metric in [("plain", numpy.eye(inputs)), ("by_inputs", damped)]:
        root = numpy.linalg.cholesky(metric)
        u, s, vt = numpy.linalg.svd(dense @ root, full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank] @ numpy.linalg.inv(root)
        found[name] = {"energy": (s**2).sum(), "kept": (s[:rank] ** 2).sum(), "best": best.ravel().tolist()}
    return found


json.dump([case(*sizes, seed) for seed, sizes in enumerate(CASES)], open(sys.argv[1], "w"))
