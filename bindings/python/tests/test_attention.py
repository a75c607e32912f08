"""Moments of what attention's queries, keys and values are computed from: half of what a token counts goes by the attention that is paid to it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from qmerge import _attention, _moments as moments  # noqa: E402

SMALL = dict(
    vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    pad_token_id=0, max_position_embeddings=64,
)


def model_of(name: str, implementation: str = "eager", **settings: Any) -> Any:
    """A random one that attends unevenly."""
    if name == "llama":
        kind, config = transformers.LlamaForCausalLM, transformers.LlamaConfig(**SMALL)
    elif name == "gemma3":
        types = ["sliding_attention", "full_attention"]
        kind, config = transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig(**SMALL, sliding_window=5, layer_types=types)
    elif name == "gemma2":
        kind, config = transformers.Gemma2ForCausalLM, transformers.Gemma2Config(**SMALL, sliding_window=5, attn_logit_softcapping=2.0)
    elif name == "gpt_oss":
        kind = transformers.GptOssForCausalLM
        config = transformers.GptOssConfig(**SMALL, sliding_window=5, num_local_experts=2, num_experts_per_tok=1)
        # The grouped product knows no double precision.
        config._experts_implementation = "eager"
    elif name == "deepseek_v3":
        kind = transformers.DeepseekV3ForCausalLM
        latent = dict(q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, first_k_dense_replace=2)
        experts = dict(n_routed_experts=4, n_group=1, topk_group=1, num_experts_per_tok=2)
        config = transformers.DeepseekV3Config(**{**SMALL, **latent, **experts, "num_key_value_heads": 4, "head_dim": 4})
    elif name == "gpt2":
        kind, config = transformers.GPT2LMHeadModel, transformers.GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    else:
        kind, config = transformers.T5EncoderModel, transformers.T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    config._attn_implementation = implementation
    torch.manual_seed(3)
    model = kind(config).eval()
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor, std=0.3 if tensor.ndim > 1 else 1.0)
    return model


def rows(count: int = 2, length: int = 19) -> Any:
    return torch.randint(1, 128, (count, length), generator=torch.Generator().manual_seed(1))


def mean(found: Any) -> Any:
    return found.sum / found.tokens


def take(model: Any, run: Callable[[], Any], **options: Any) -> dict[str, Any]:
    """Mean moments by the names that share them."""
    taken = moments.Moments(model, moments.targets(model), **options)
    try:
        with torch.no_grad():
            run()
    finally:
        taken.remove()
    return {" ".join(found.names): mean(found) for found in taken.inputs.values() if found.sum is not None}


def distance(a: Any, b: Any) -> float:
    return float((a - b).double().norm() / a.double().norm())


def wanted(model: Any, ids: Any, path: str, modules: list[str]) -> list[dict[str, Any]]:
    """From the shares that eager attention says itself, in double precision: layer by layer the plain and the weighted mean."""
    model = model.double()
    seen: dict[str, Any] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0].detach()))
        for name, module in model.named_modules()
        if name.split(".")[-1] in modules
    ]
    with torch.no_grad():
        shares = model(input_ids=ids, output_attentions=True).attentions
    for hook in hooks:
        hook.remove()
    model.float()
    found = []
    for layer, share in enumerate(shares):
        x = seen[path.format(layer)].reshape(*ids.shape, -1)
        weights = share.double().square().sum((1, 2))
        half = (1 + weights / weights.mean(1, keepdim=True)) / 2
        product = lambda w: torch.einsum("bt,bti,btj->ij", w, x, x) / w.sum()
        found.append({"plain": product(torch.ones_like(weights)), "weighted": product(half)})
    return found


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3", "gpt_oss"])
@pytest.mark.parametrize("at_once", [1 << 24, 200])
def test_the_attention_that_is_paid(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # In blocks of a few queries too.
    monkeypatch.setattr(_attention, "AT_ONCE", at_once)
    model, ids = model_of(name), rows()
    found = take(model, lambda: model(input_ids=ids))
    want = wanted(model, ids, "model.layers.{}.self_attn.k_proj", ["k_proj"])
    for layer, means in enumerate(want):
        names = " ".join(f"model.layers.{layer}.self_attn.{part}_proj.weight" for part in "qkv")
        assert distance(means["weighted"], found[names]) < 1e-5
        # They are not the same by chance.
        assert distance(means["weighted"], means["plain"]) > 1e-2


def test_queries_keys_and_values_in_one() -> None:
    model, ids = model_of("gpt2"), rows()
    found = take(model, lambda: model(input_ids=ids))
    want = wanted(model, ids, "transformer.h.{}.attn.c_attn", ["c_attn"])
    for layer, means in enumerate(want):
        assert distance(means["weighted"], found[f"transformer.h.{layer}.attn.c_attn.weight"]) < 1e-5
        assert distance(means["plain"], means["weighted"]) > 1e-2


def test_keys_and_values_from_a_latent() -> None:
    model, ids = model_of("deepseek_v3"), rows()
    found = take(model, lambda: model(input_ids=ids))
    for names in [["q_a_proj", "kv_a_proj_with_mqa"], ["kv_b_proj"], ["q_b_proj"]]:
        want = wanted(model, ids, f"model.layers.{{}}.self_attn.{names[0]}", names)
        for layer, means in enumerate(want):
            key = " ".join(f"model.layers.{layer}.self_attn.{name}.weight" for name in names)
            assert distance(means["weighted"], found[key]) < 1e-5
            assert distance(means["plain"], means["weighted"]) > 1e-2


def test_attention_to_another_sequence_of_as_many_tokens() -> None:
    small = dict(vocab_size=128, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    torch.manual_seed(3)
    model, ids = transformers.T5ForConditionalGeneration(transformers.T5Config(**small)).eval(), rows()
    seen: dict[str, Any] = {}
    paths = [f"decoder.block.{layer}.layer.1.EncDecAttention.{part}" for layer in (0, 1) for part in "qk"]
    hooks = [model.get_submodule(path).register_forward_pre_hook(lambda _, args, path=path: seen.__setitem__(path, args[0])) for path in paths]
    found = take(model, lambda: model(input_ids=ids, decoder_input_ids=ids.flip(1)))
    for hook in hooks:
        hook.remove()
    assert len(seen) == 4
    for path, x in seen.items():
        x = x.reshape(-1, 32)
        key = f"{path}.weight" if path.endswith("q") else f"{path}.weight {path[:-1]}v.weight"
        assert distance(x.T @ x / len(x), found[key]) < 1e-6


def test_what_is_never_ended_ends_with_its_model() -> None:
    kind = type(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS)
    look_up, model, other, ids = kind.get_interface, model_of("llama"), model_of("llama"), rows()
    taken: Any = moments.Moments(model, moments.targets(model))
    gone = weakref.ref(taken)
    assert kind.get_interface is not look_up
    del model, taken
    gc.collect()
    assert gone() is None
    other(input_ids=ids)
    assert kind.get_interface is look_up


def test_attention_both_ways_with_biases_by_distance() -> None:
    model, ids = model_of("t5"), rows()
    found = take(model, lambda: model(input_ids=ids))
    want = wanted(model, ids, "encoder.block.{}.layer.0.SelfAttention.k", ["k"])
    for layer, means in enumerate(want):
        names = " ".join(f"encoder.block.{layer}.layer.0.SelfAttention.{part}.weight" for part in "qkv")
        assert distance(means["weighted"], found[names]) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "t5"])
def test_implementations_give_the_same(name: str) -> None:
    eager, sdpa = (model_of(name, implementation) for implementation in ("eager", "sdpa"))
    ids = rows()
    a, b = take(eager, lambda: eager(input_ids=ids)), take(sdpa, lambda: sdpa(input_ids=ids))
    assert a.keys() == b.keys() and max(distance(a[key], b[key]) for key in a) < 1e-5


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "deepseek_v3"])
def test_padding_is_not_seen(name: str, implementation: str) -> None:
    model, ids = model_of(name, implementation), rows()
    short = ids[:, :11].clone()
    short[1] = ids[1, 8:]
    for side in ("right", "left"):
        padded, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        padded[0], mask[0] = ids[0], 1
        part = slice(0, 11) if side == "right" else slice(8, 19)
        padded[1, part], mask[1, part] = short[1], 1
        # Positions are said, as `generate` says them: of padding at the left they would be others.
        places = (mask.cumsum(1) - 1).clamp(0)
        together = take(model, lambda: model(input_ids=padded, attention_mask=mask, position_ids=places))

        def apart() -> None:
            model(input_ids=ids[:1])
            model(input_ids=short[1:])

        one_by_one = take(model, apart)
        assert max(distance(one_by_one[key], together[key]) for key in together) < 1e-5, side


def test_weights_of_what_flash_attention_is_given() -> None:
    """It makes its own masks: of a window, of padding, and of texts in one row."""
    module = torch.nn.Module()
    module.is_causal = True
    generator = torch.Generator().manual_seed(5)
    q, k = torch.randn(1, 4, 12, 8, generator=generator), torch.randn(1, 2, 12, 8, generator=generator)
    given = {"module": module, "query": q, "key": k, "value": k, "attention_mask": None, "scaling": 0.5}
    both = lambda **more: _attention.weights("flash_attention_2", {**given, **more}, None)
    piece = lambda some, **more: _attention.weights("flash_attention_2", {**given, "query": q[:, :, some], "key": k[:, :, some], **more}, None)
    first, second = slice(0, 7), slice(7, 12)
    apart = torch.cat([piece(first), piece(second)], 1)
    places = torch.tensor([[*range(7), *range(5)]])
    assert torch.allclose(apart, both(position_ids=places))
    assert torch.allclose(apart, both(cu_seq_lens_q=torch.tensor([0, 7, 12], dtype=torch.int32)))
    mask = torch.tensor([[1] * 7 + [0] * 5])
    of_first = _attention.weights("flash_attention_2", {**given, "attention_mask": mask}, mask)
    assert torch.allclose(of_first[:, :7], piece(first)) and not of_first[:, 7:].any()
    scores = (q.view(2, 2, 12, 8) @ k.view(2, 1, 12, 8).mT) * 0.5
    back = torch.arange(12)[:, None] - torch.arange(12)
    shares = scores.masked_fill((back < 0) | (back >= 3), float("-inf")).softmax(-1)
    assert torch.allclose(both(sliding_window=3)[0], shares.square().sum((0, 1, 2)))


def test_where_weights_are_not_known() -> None:
    """Tokens that look at others through a cache, and attention that goes another way, count alike."""
    model, ids = model_of("llama", "sdpa"), rows()

    cache: Any = None
    seen: list[Any] = []

    def further(count: int) -> float:
        """How far what is taken is from the plain mean."""

        def run() -> None:
            nonlocal cache
            known = cache.get_seq_length() if cache else 0
            cache = model(input_ids=ids[:, known : known + count], past_key_values=cache, use_cache=True).past_key_values

        hook = model.model.layers[1].self_attn.q_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        found = take(model, run)
        hook.remove()
        x = seen.pop().reshape(-1, seen_features)
        return distance(x.T @ x / len(x), found[" ".join(f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv")])

    seen_features = model.config.hidden_size
    assert further(9) > 1e-2
    assert further(9) < 1e-6 and further(1) < 1e-6
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=128, hidden_size=32, n_layer=2, n_head=4)).eval()
    layer = bloom.transformer.h[1].self_attention.query_key_value
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = take(bloom, lambda: bloom(input_ids=ids))
    hook.remove()
    x = seen.pop().reshape(-1, 32)
    assert distance(x.T @ x / len(x), found["transformer.h.1.self_attention.query_key_value.weight"]) < 1e-6


def test_sums_in_several_runs() -> None:
    model, ids = model_of("llama", "sdpa"), rows()
    whole = take(model, lambda: model(input_ids=ids))
    taken: dict[str, Any] = {}
    for key in whole:
        taken |= take(model, lambda: model(input_ids=ids), only={key.split()[0]})
    assert all(torch.equal(whole[key], taken[key]) for key in whole)
    half = model.to(torch.bfloat16)
    near = take(half, lambda: half(input_ids=ids))
    assert all(mean.dtype == torch.float32 for mean in near.values())


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_model_computes_what_it_did(implementation: str, checkpointing: bool) -> None:
    model, other, ids = model_of("llama", implementation), model_of("llama", implementation), rows()
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def step() -> tuple[Any, list[Any]]:
        model.zero_grad()
        done = model(input_ids=ids, labels=ids, use_cache=False)
        done.loss.backward()
        return done.logits, [tensor.grad.clone() for tensor in model.parameters()]

    kind = type(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS)
    look_up = kind.get_interface
    logits, gradients = step()
    first, second = moments.Moments(model, moments.targets(model)), moments.Moments(model, moments.targets(model))
    again, as_before = step()
    # Another model's passes are its own.
    other(input_ids=ids)
    # One that ends leaves the other's in place.
    first.remove()
    assert kind.get_interface is not look_up
    step()
    second.remove()
    assert kind.get_interface is look_up
    assert torch.equal(logits, again) and all(map(torch.equal, gradients, as_before))
    assert {found.tokens for found in first.inputs.values()} == {ids.numel()}
    assert {found.tokens for found in second.inputs.values()} == {2 * ids.numel()}
    q = "model.layers.1.self_attn.q_proj.weight"
    assert distance(mean(first.inputs[q]), mean(second.inputs[q])) < 1e-6


def test_a_compiled_model_still_runs() -> None:
    model, ids = model_of("llama", "sdpa"), rows()
    with torch.no_grad():
        want = model(input_ids=ids).logits
        taken = moments.Moments(model, moments.targets(model))
        compiled = torch.compile(model, backend="eager")
        assert torch.allclose(want, compiled(input_ids=ids).logits, atol=1e-4)
        taken.remove()
        assert torch.allclose(want, compiled(input_ids=ids).logits, atol=1e-4)
