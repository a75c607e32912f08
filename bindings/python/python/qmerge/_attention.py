"""How much attention is paid to each token of a live model: half of what errors of its query, key and value are weighted by.

A token's value comes out of every query that attends to it, with the share it has there, so that its error counts with the sum of those shares' squares. transformers' models
look up their attention function by name as they run, and give it all that shares follow from. The look-up is what is wrapped: the function itself is called as it was, with
what it was given.
"""

from __future__ import annotations

import functools
import importlib
import sys
import weakref
from collections.abc import Callable
from typing import Any, Optional

AT_ONCE = 1 << 24
"""Most scores in memory at a time: 64 MB."""

WEIGHTED = {
    *("q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v", "wq", "wk", "wv", "to_q", "to_k", "to_v"),
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "kv_proj"),
    *("qkv_proj", "query_key_value", "c_attn", "Wqkv", "qkv", "in_proj"),
}
"""Linear layers that compute queries, keys or values, as models name them."""

Watch = Callable[[Any, Callable[[Any], Optional[Any]]], None]
"""Called with the module that attends and what computes the weights of its tokens, given those that are no padding."""

# Weak: a training that fails ends nothing, and what it held is not to stay for that.
_watches: list[weakref.WeakMethod[Watch]] = []
_restore: list[Callable[[], None]] = []


def watch(each: Watch) -> Callable[[], None]:
    """Has `each`, a method, called before every call of an attention function, until what is returned is called or its object is gone."""
    mine = weakref.WeakMethod(each)
    _watches.append(mine)
    if not _restore:
        _wrap()

    def end() -> None:
        if mine in _watches:
            _watches.remove(mine)
        _living()

    return end


def _living() -> list[Watch]:
    """Whom to tell; with nobody left the look-up is what it was."""
    _watches[:] = [each for each in _watches if each() is not None]
    while _restore and not _watches:
        _restore.pop()()
    return [found for each in _watches if (found := each()) is not None]


def _wrap() -> None:
    # Of a model that is none of transformers' nothing is known, and nothing is imported for it.
    module = sys.modules.get("transformers.modeling_utils")
    kind: Any = type(getattr(module, "ALL_ATTENTION_FUNCTIONS", None))
    # Versions before 5 look up by index, and not where attention is eager; the first that did had a plain dictionary, which has no room for this.
    name = "get_interface" if hasattr(kind, "get_interface") else "__getitem__"
    if kind.__module__ == "builtins":
        return
    own, original = vars(kind).get(name), getattr(kind, name)
    compiler = importlib.import_module("torch").compiler

    @functools.wraps(original)
    def look_up(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        # Compiled code is to hold none of this.
        if compiler.is_compiling() or not callable(found):
            return found
        return _watched(found, args[0] if args else next(iter(kwargs.values()), None))

    def restore() -> None:
        # Another's that came after stays, and calls this one, which then has nobody to tell.
        if vars(kind).get(name) is look_up:
            setattr(kind, name, own) if own is not None else delattr(kind, name)

    setattr(kind, name, look_up)
    _restore.append(restore)


def _watched(attend: Callable[..., Any], implementation: Any) -> Callable[..., Any]:
    if not _living():
        return attend

    @functools.wraps(attend)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(("module", "query", "key", "value", "attention_mask"), args)), **kwargs}
        for each in _living():
            each(given.get("module"), functools.partial(weights, implementation, given))
        return attend(*args, **kwargs)

    return wrapper


def weights(implementation: Any, given: dict[str, Any], tokens: Any) -> Optional[Any]:
    """For each token of each sequence (batch, tokens) the sum over heads and queries of squared shares, in float32; None where what an attention function was given does
    not say them, or is not a whole sequence that attends to itself.

    Args:
        tokens: which are no padding (batch, tokens), or None for all: what padding attends to does not matter.
    """
    lib = importlib.import_module("torch")
    query, key = given.get("query"), given.get("key")
    kinds = [getattr(tensor, "ndim", 0) == 4 and not hasattr(tensor, "to_local") for tensor in (query, key)]
    if query is None or key is None or not all(kinds):
        return None
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    if tuple(key.shape) != (batch, groups, length, width) or heads % groups or not batch * length:
        return None
    if tokens is not None:
        if tokens.numel() != batch * length:
            return None
        tokens = tokens.reshape(batch, length)
    with lib.no_grad(), lib.autocast(device_type=query.device.type, enabled=False):
        biases = _biases(implementation, given, query)
        sinks = given.get("s_aux")
        if biases is None or (sinks is not None and sinks.numel() != heads):
            return None
        scale = given.get("scaling")
        scale = width**-0.5 if scale is None else scale
        cap = given.get("softcap")
        found = lib.zeros(batch, length, dtype=lib.float32, device=query.device)
        rows = max(1, AT_ONCE // (heads * length))
        for at in range(batch):
            keys = key[at].detach().float()
            for start in range(0, length, rows):
                some = slice(start, min(start + rows, length))
                # Heads that share keys are rows of one product.
                asks = query[at, :, some].detach().float().reshape(groups, -1, width)
                scores = (asks @ keys.mT).mul_(scale).view(heads, -1, length)
                if cap:
                    scores.div_(cap).tanh_().mul_(cap)
                for bias in biases:
                    _apply(scores, bias(at, some))
                if sinks is None:
                    scores = scores.softmax(-1)
                else:
                    # A sink takes a share as if it were one more token.
                    total = lib.logaddexp(scores.logsumexp(-1), sinks.detach().float().view(-1, 1))
                    scores = scores.sub_(total[..., None]).exp_()
                scores.square_()
                if tokens is not None:
                    scores.mul_(tokens[at, some].to(scores.device).float()[None, :, None])
                # Of a query that may look at nothing.
                found[at] += scores.nan_to_num_(0.0).sum((0, 1))
        return found


def _apply(scores: Any, bias: Any) -> None:
    if bias.dtype == importlib.import_module("torch").bool:
        scores.masked_fill_(~bias, float("-inf"))
    else:
        scores.add_(bias.float())


Bias = Callable[[int, slice], Any]


def _biases(implementation: Any, given: dict[str, Any], query: Any) -> Optional[list[Bias]]:
    """What scores of some queries of a sequence are changed by, each (heads or 1, queries or 1, tokens): a number to add, or whether a token may be attended to. None where
    it is not known."""
    batch, heads, length, _ = query.shape
    found: list[Bias] = []
    position: Any = given.get("position_bias")
    mask: Any = given.get("attention_mask")
    for tensor in (position, mask):
        if getattr(tensor, "ndim", 0) == 4:
            fits = (batch, heads, length, length)
            if any(have not in (1, want) for have, want in zip(tensor.shape, fits)) or tensor.shape[-1] != length:
                return None
            found.append(functools.partial(_cut, tensor.detach()))
        elif tensor is not None and (tensor is position or tuple(getattr(tensor, "shape", ())) != (batch, length)):
            return None
    if getattr(mask, "ndim", 0) == 4:
        return found
    if implementation == "eager":
        return found if mask is None else None
    if mask is not None:
        found.append(lambda at, some: mask[at].bool()[None, None])
    # Without a mask of all pairs, the function makes its own.
    causal = given.get("is_causal")
    causal = getattr(given.get("module"), "is_causal", True) if causal is None else causal
    window = given.get("sliding_window")
    packed = _packed(implementation, given, query)

    def pairs(at: int, some: slice) -> Any:
        lib = importlib.import_module("torch")
        tokens = lib.arange(length, device=query.device)
        back = tokens[some, None] - tokens
        may = back >= (0 if causal else -length)
        if window:
            may &= back.abs() < window
        if packed is not None:
            may &= packed[some, None] == packed
        return may[None]

    return [*found, pairs]


def _cut(tensor: Any, at: int, some: slice) -> Any:
    one = tensor[at if tensor.shape[0] > 1 else 0]
    return one[:, some] if one.shape[1] > 1 else one


def _packed(implementation: Any, given: dict[str, Any], query: Any) -> Any:
    """Which of several texts each token belongs to, where a row holds more than one: flash attention is told by where texts end, or by positions that begin anew."""
    lib = importlib.import_module("torch")
    length = query.shape[2]
    ends: Any = given.get("cu_seq_lens_q")
    places: Any = given.get("position_ids")
    if query.shape[0] != 1 or "flash" not in str(implementation):
        return None
    if ends is not None:
        return lib.bucketize(lib.arange(length, device=query.device), ends[1:].to(query.device), right=True)
    if tuple(getattr(places, "shape", ())) != (1, length):
        return None
    return lib.nn.functional.pad(places[0].diff() != 1, (1, 0)).cumsum(0).to(query.device)


def is_weighted(name: str) -> bool:
    """Whether the layer whose weight has this name computes queries, keys or values."""
    return "." in name and name.split(".")[-2] in WEIGHTED
