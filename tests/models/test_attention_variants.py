"""Every variant against its formula, head by head and position by position, and what is its own."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor
from torch.nn import functional as F

from birthplace_lm.config.compose import compose
from birthplace_lm.config.groups import conf_dir
from birthplace_lm.data.vocab import CharVocab
from birthplace_lm.errors import InputError
from birthplace_lm.models.attention.rope import RopeAttention
from birthplace_lm.models.build import build_model
from birthplace_lm.models.gpt import GPT, PAD_ID
from birthplace_lm.models.kv_cache import KVCache
from birthplace_lm.models.partial_forward import forward_with_shared_prefix
from birthplace_lm.models.sdpa import record_attention_weights
from birthplace_lm.training.preflight import _build_on_meta

WIDTH, HEADS, LENGTH, BLOCK = 24, 4, 11, 16
DEPTH = WIDTH // HEADS

# Of the course's model: 4 layers, 8 heads, width 256, 128 positions, 256 symbols.
PARAMETERS = {
    "additive": 3_324_416,
    "alibi": 3_290_624,
    "differential": 3_320_064,
    "gated": 3_586_560,
    "gated attention.per_head=true": 3_331_616,
    "gqa attention.n_kv_head=1": 2_862_848,
    "gqa": 2_928_640,
    "gqa attention.n_kv_head=4": 3_060_224,
    "linear": 3_323_392,
    "nope": 3_290_624,
    "nope canon=true": 3_290_624 + 4 * 2 * 4 * 256,
    "perceiver": 3_339_776,
    "perceiver_ar": 3_323_392,
    "rope": 3_290_624,
    "sliding_window": 3_323_392,
    "synthesizer": 3_076_988,
    "synthesizer_factorized_dense": 3_085_568,
    "synthesizer_factorized_random": 2_862_592,
    "synthesizer_fixed": 2_797_056,
    "synthesizer_mixture": 3_339_652,
    "synthesizer_mixture_random": 3_847_684,
    "synthesizer_per_head": 3_194_336,
    "synthesizer_random": 3_321_344,
    "vanilla": 3_323_392,
}


def test_every_variant_has_its_parameters_counted() -> None:
    names = {path.stem for path in (conf_dir() / "attention").glob("*.yaml")}
    assert {variant.split()[0] for variant in PARAMETERS} == names


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameters(variant: str) -> None:
    name, *rest = variant.split()
    sizes = compose([f"attention={name}", "model=gpt_3m", *(f"model.{override}" for override in rest)]).model
    with torch.device("meta"):
        model = build_model(sizes, vocab_size=256)
    assert model.num_parameters == PARAMETERS[variant]


def layer_of(name: str, *overrides: str, layer: int = 1) -> Any:
    """The attention of one layer, no parameter of it zero."""
    torch.manual_seed(0)
    factory = instantiate(compose([f"attention={name}", *overrides]).model.attention)
    extra = {"layer": layer} if name in ("differential", "perceiver_ar") else {}
    made = factory(n_embd=WIDTH, n_head=HEADS, block_size=BLOCK, dropout=0.0, **extra).eval().double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def rotated(x: Tensor, t: int) -> Tensor:
    """By complex numbers."""
    pairs = torch.view_as_complex(x.unflatten(0, (-1, 2)).contiguous())
    angles = torch.tensor([t * 10_000.0 ** (-2 * i / DEPTH) for i in range(DEPTH // 2)], dtype=torch.double)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten()


def mixture(a: Any, h: int, t: int, s: int, x: Tensor) -> Tensor:
    alpha, q = torch.sigmoid(a.alpha[0]), part(a.query, h, x[t])
    dot = q @ part(a.key, h, x[s]) / DEPTH**0.5
    return (1 - alpha) * dot + alpha * (q.clamp(min=0) @ a.w2[:, s])


def factorized(a: Any, h: int, t: int, s: int, x: Tensor) -> Tensor:
    hidden = part(a.w1, h, x[t]).clamp(min=0)
    rows, columns = hidden @ a.rows[h] + a.row_bias[h, 0], hidden @ a.columns[h] + a.column_bias[h, 0]
    return rows[s // 4] * columns[s % 4]


def part(linear: Any, head: int, x: Tensor) -> Tensor:
    """The channels of one head."""
    return linear(x)[head * DEPTH : (head + 1) * DEPTH]


def dot(a: Any, h: int, t: int, s: int, x: Tensor) -> Tensor:
    return part(a.query, h, x[t]) @ part(a.key, h, x[s]) / DEPTH**0.5


def when(condition: bool, score: Tensor) -> Tensor:
    return score if condition else torch.tensor(-math.inf, dtype=torch.double)


# The score of key s for query t in head h.
SCORES: dict[str, Callable[[Any, int, int, int, Tensor], Tensor]] = {
    "vanilla": dot,
    "nope": dot,
    "gated": dot,
    "rope": lambda a, h, t, s, x: (
        rotated(part(a.query, h, x[t]), t) @ rotated(part(a.key, h, x[s]), s) / DEPTH**0.5
    ),
    "alibi": lambda a, h, t, s, x: dot(a, h, t, s, x) - 2 ** (-8 * (h + 1) / HEADS) * (t - s),
    "gqa": lambda a, h, t, s, x: part(a.query, h, x[t]) @ part(a.key, h // 2, x[s]) / DEPTH**0.5,
    "sliding_window": lambda a, h, t, s, x: when(t - s < 3, dot(a, h, t, s, x)),
    "perceiver_ar": lambda a, h, t, s, x: when(t - s < 3, dot(a, h, t, s, x)),
    "additive": lambda a, h, t, s, x: a.score[h] @ torch.tanh(part(a.query, h, x[t]) + part(a.key, h, x[s])),
    "linear": lambda a, h, t, s, x: (
        (F.elu(part(a.query, h, x[t])) + 1) @ (F.elu(part(a.key, h, x[s])) + 1)
    ).log(),
    "synthesizer": lambda a, h, t, s, x: part(a.w1, h, x[t]).clamp(min=0) @ a.w2[:, s] + a.b2[s],
    "synthesizer_per_head": lambda a, h, t, s, x: (
        part(a.w1, h, x[t]).clamp(min=0) @ a.w2[h, :, s] + a.b2[h, s]
    ),
    "synthesizer_random": lambda a, h, t, s, x: a.scores[h, t, s],
    "synthesizer_fixed": lambda a, h, t, s, x: a.scores[h, t, s],
    "synthesizer_factorized_random": lambda a, h, t, s, x: a.left[h, t] @ a.right[h, s],
    "synthesizer_factorized_dense": factorized,
    "synthesizer_mixture": mixture,
    "synthesizer_mixture_random": lambda a, h, t, s, x: (
        (1 - torch.sigmoid(a.alpha[0])) * dot(a, h, t, s, x) + torch.sigmoid(a.alpha[0]) * a.scores[h, t, s]
    ),
}
OVERRIDES = {
    "synthesizer_factorized_dense": ["model.attention.rows=4", "model.attention.columns=4"],
    "sliding_window": ["model.attention.window=3"],
    "perceiver_ar": ["model.attention.window=3"],
}


@pytest.mark.parametrize("name", SCORES)
@torch.no_grad()
def test_agrees_with_its_formula(name: str) -> None:
    a, x = layer_of(name, *OVERRIDES.get(name, [])), torch.randn(LENGTH, WIDTH).double()
    expected = torch.zeros(HEADS, LENGTH, LENGTH, dtype=torch.double)
    for h in range(HEADS):
        for t in range(LENGTH):
            scores = torch.stack([SCORES[name](a, h, t, s, x) for s in range(t + 1)])
            expected[h, t, : t + 1] = scores.exp() / scores.exp().sum()
    with record_attention_weights(a) as recorded:
        y = a(x[None])[0]
    weights = torch.cat([r.expand(1, -1, -1, -1) for r in recorded])[0]
    torch.testing.assert_close(weights, expected.float(), atol=1e-6, rtol=1e-5)
    heads = [h // 2 if name == "gqa" else h for h in range(HEADS)]
    mixed = torch.cat(
        [expected[h] @ torch.stack([part(a.value, heads[h], r) for r in x]) for h in range(HEADS)], 1
    )
    if name == "gated":
        mixed = mixed / (1 + torch.exp(-a.gate(x)))
    torch.testing.assert_close(y, a.proj(mixed), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_differential_agrees_with_its_formula() -> None:
    a, x = layer_of("differential", layer=2), torch.randn(LENGTH, WIDTH).double()
    start = 0.8 - 0.6 * math.exp(-0.6)
    one, two, three, four = (a.get_parameter(f"lambda_{name}") for name in ("q1", "k1", "q2", "k2"))
    for vector in (one, two, three, four):
        vector.mul_(0.2)  # leaves lambda positive
    factor = torch.exp((one * two).sum()) - torch.exp((three * four).sum()) + start
    outputs, maps = [], []
    for pair in range(HEADS // 2):
        both = []
        for h in (2 * pair, 2 * pair + 1):
            scores = torch.full((LENGTH, LENGTH), -math.inf, dtype=torch.double)
            for t in range(LENGTH):
                for s in range(t + 1):
                    scores[t, s] = dot(a, h, t, s, x)
            both.append(scores.exp() / scores.exp().sum(1, keepdim=True))
        maps.append(both[0] - factor * both[1])
        mixed = maps[-1] @ a.value(x)[:, 2 * DEPTH * pair : 2 * DEPTH * (pair + 1)]
        scale = (mixed.square().mean(1, keepdim=True) + 1e-5).sqrt()
        outputs.append(mixed / scale * a.norm.weight * (1 - start))
    with record_attention_weights(a) as recorded:
        y = a(x[None])[0]
    torch.testing.assert_close(y, a.proj(torch.cat(outputs, 1)), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(recorded[0][0], torch.stack(maps).float(), atol=1e-6, rtol=1e-5)
    rows = recorded[0].sum(-1)
    torch.testing.assert_close(rows, (1 - factor).float().expand_as(rows))
    assert (recorded[0] < 0).any()


@pytest.mark.parametrize(("query", "key"), [(-9.0, -5.0), (-12.0, -12.0), (200.0, 200.0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_linear_attention_of_extreme_queries_and_keys_is_finite(
    dtype: torch.dtype, query: float, key: float
) -> None:
    """Bug: elu(x) + 1 was 0 from x = -6 on in bfloat16, and the weights 0 / 0; float16 overflowed."""
    a = layer_of("linear")
    q, k, v = (torch.full((1, 1, 3, 4), number, dtype=dtype) for number in (query, key, 2.0))
    q.requires_grad_()
    y = a.attend(q, k, v)
    torch.testing.assert_close(y, v)
    (gradient,) = torch.autograd.grad(y.sum(), q)
    assert torch.isfinite(gradient).all()


def test_gates_of_whole_heads() -> None:
    a, x = layer_of("gated", "model.attention.per_head=true"), torch.randn(1, LENGTH, WIDTH).double()
    with torch.no_grad():
        a.gate.weight.zero_()
        a.gate.bias.copy_(torch.tensor([0.0, 100.0, -100.0, 0.0]))
        a.proj.weight.copy_(torch.eye(WIDTH))
        a.proj.bias.zero_()
        plain = a.attend_to(*a.project(x), None)
        gates = torch.tensor([0.5, 1.0, 0.0, 0.5]).double().repeat_interleave(DEPTH)
        torch.testing.assert_close(a(x), plain * gates)


@pytest.mark.parametrize("name", ["rope", "nope", "alibi", "linear", "gqa", "additive", "sliding_window"])
@torch.no_grad()
def test_only_distances_count(name: str) -> None:
    """The same text five positions later, with nothing before it, gives the same result."""
    a, x = layer_of(name, *OVERRIDES.get(name, [])), torch.randn(2, LENGTH, WIDTH).double()
    cache = KVCache(1, BLOCK)
    cache.set_positions(torch.arange(5, 5 + LENGTH)[None].expand(2, -1), 5 + LENGTH)
    cache.layers[0].mask = cache.layers[0].mask & (torch.arange(5 + LENGTH) >= 5)
    torch.testing.assert_close(a(x, cache.layers[0]), a(x))


@pytest.mark.parametrize("name", ["rope", "nope", "alibi", "vanilla"])
@torch.no_grad()
def test_only_distances_count_in_the_whole_model(name: str) -> None:
    """The same, of the logits; PADs in front of the text are read as any symbol, and change them."""
    model = with_random_weights([f"attention={name}", "model=tiny"])
    ids = torch.randint(2, 30, (2, LENGTH))
    cache = KVCache(model.n_layer, 5 + LENGTH)
    cache.set_positions(torch.arange(5, 5 + LENGTH)[None].expand(2, -1), 5 + LENGTH)
    for layer in cache.layers:
        layer.mask = layer.mask & (torch.arange(5 + LENGTH) >= 5)
    assert torch.allclose(model(ids, cache), model(ids)) == (name != "vanilla")
    padded = model(F.pad(ids, (5, 0), value=0))[:, 5:]
    assert not torch.allclose(padded, model(ids), atol=0.1)


RELATIVE = ["rope", "nope", "alibi", "linear", "gqa", "gated", "differential", "additive", "sliding_window"]


@pytest.mark.parametrize("canon", [False, True])
@pytest.mark.parametrize("name", [*RELATIVE, "vanilla"])
@torch.no_grad()
def test_masked_pads_in_front_change_nothing(name: str, canon: bool) -> None:
    """Neither in one piece, nor after a prefix that is computed once, and then character by character."""
    overrides = ["model=tiny", "model.n_head=4", f"model.canon={canon}", "model.mask_pads=true"]
    if name != "vanilla":
        overrides.append("model.learned_positions=false")
    model = with_random_weights([f"attention={name}", *overrides, *OVERRIDES.get(name, [])])
    ids = torch.randint(2, 30, (3, LENGTH))
    ids[:, :2] = ids[0, :2]
    expected, padded = model(ids), F.pad(ids, (5, 0), value=PAD_ID)
    assert torch.allclose(model(padded)[:, 5:], expected) == (name != "vanilla")
    cache, late = KVCache(model.n_layer, 5 + LENGTH), (torch.arange(12) >= 7).expand(3, -1)
    rest = forward_with_shared_prefix(model, padded[:, :12], 7, late, cache)
    torch.testing.assert_close(rest.view(3, 5, -1), model(padded)[:, 7:12])
    for t in range(12, 5 + LENGTH):
        cache.set_positions(torch.full((3, 1), t), 5 + LENGTH)
        torch.testing.assert_close(model(padded[:, t : t + 1], cache), model(padded)[:, t : t + 1])


@pytest.mark.parametrize("name", sorted({variant.split()[0] for variant in PARAMETERS} - {"perceiver"}))
@torch.no_grad()
def test_masked_pads_are_not_read(name: str) -> None:
    """No logit of a character depends on what the embedding of PAD is; without masking, all do."""
    assert CharVocab.pad_id == PAD_ID
    for masked in (False, True):
        overrides = ["model=tiny", "model.n_head=4", "model.canon=true", f"model.mask_pads={masked}"]
        model = with_random_weights([f"attention={name}", *overrides])
        ids = torch.randint(2, 30, (2, 12))
        ids[0, :5], ids[1, :2], ids[1, 7] = PAD_ID, PAD_ID, PAD_ID
        before = model(ids)
        model.tok_emb.weight[PAD_ID] += torch.randn(32)  # not by a constant: LayerNorm takes that out
        change = (model(ids) - before).abs().amax(2)
        assert change[ids == PAD_ID].min() > 1e-6
        assert (change[ids != PAD_ID] > 1e-6).all() == (not masked)
        assert (change[ids != PAD_ID] == 0).all() == masked


def with_random_weights(overrides: list[str]) -> GPT:
    torch.manual_seed(0)
    model = build_model(compose(overrides).model, 30).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def test_synthesizers_know_absolute_positions() -> None:
    a, x = layer_of("synthesizer_random"), torch.randn(1, LENGTH, WIDTH).double()
    cache = KVCache(1, BLOCK)
    cache.set_positions(torch.arange(5, 5 + LENGTH)[None], 5 + LENGTH)
    cache.layers[0].mask = cache.layers[0].mask & (torch.arange(5 + LENGTH) >= 5)
    assert not torch.allclose(a(x, cache.layers[0]), a(x), atol=0.01)


def test_rotation_keeps_lengths_and_depends_on_the_base() -> None:
    x, positions = torch.randn(1, 1, 7, 32), torch.arange(7)[None]
    slow, fast = (RopeAttention(64, 2, 8, 0.0, base=base).rotate(x, positions) for base in (1e4, 10.0))
    torch.testing.assert_close(slow.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(slow[..., :2], fast[..., :2])  # the fastest pair turns by t in both
    assert not torch.allclose(slow[..., 2:], fast[..., 2:])
    assert torch.equal(slow[:, :, 0], x[:, :, 0])


def test_a_factorized_dense_synthesizer_tells_all_positions_apart() -> None:
    a = layer_of("synthesizer_factorized_dense", *OVERRIDES["synthesizer_factorized_dense"])
    a.attend.register_forward_pre_hook(lambda module, args: scores.append(args[0]))
    scores: list[Tensor] = []
    a(torch.randn(1, BLOCK, WIDTH).double())
    for head in scores[0][0]:
        assert len(head[-1].unique()) == BLOCK


def test_fixed_scores_are_saved_and_not_trained() -> None:
    a = layer_of("synthesizer_fixed")
    assert "scores" in a.state_dict()
    assert "scores" not in dict(a.named_parameters())
    assert a.scores.std().item() == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("length", [5, 8, 13])
@torch.no_grad()
def test_perceiver_agrees_with_the_course(length: int) -> None:
    """All latents, whatever the length, and three blocks as the course describes them.

    It says about the first block "use the layernorm layers on C", the latents. That the characters are
    normalised too, as in every other block, is our choice.
    """
    torch.manual_seed(0)
    sizes = compose(["attention=perceiver", "model=tiny", "model.n_layer=3", "model.block.latents=8"]).model
    model = build_model(sizes, 30).double().eval()
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    ids = torch.randint(2, 30, (2, length))

    def attended(attn: Any, keys: Tensor, queries: Tensor) -> Tensor:
        q, k, v = (
            linear(inputs).unflatten(2, (2, -1)).transpose(1, 2)
            for linear, inputs in ((attn.query, queries), (attn.key, keys), (attn.value, keys))
        )
        seen = torch.arange(k.shape[2]) <= torch.arange(q.shape[2])[:, None]
        weights = (q @ k.mT / 4).masked_fill(~seen, -math.inf).softmax(-1)
        return attn.proj((weights @ v).transpose(1, 2).flatten(2))

    blocks: Any = model.blocks
    first, middle, last = blocks
    assert model.pos_emb is not None
    text = model.tok_emb(ids) + model.pos_emb[:, :length]
    latents = first.basis.expand(2, -1, -1)
    x = latents + attended(first.attn, first.ln1(text), first.ln1(latents))
    x = x + first.mlp(first.ln2(x))
    x = x + attended(middle.attn, middle.ln1(x), middle.ln1(x))
    x = x + middle.mlp(middle.ln2(x))
    x = text + attended(last.attn, last.ln1(x), text)
    x = x + last.mlp(last.ln2(x))
    torch.testing.assert_close(model(ids), model.head(model.ln_f(x)))


@torch.no_grad()
def test_perceiver_ar_is_vanilla_up_to_its_latents() -> None:
    sizes = compose(["attention=perceiver_ar", "model=tiny"]).model
    model, vanilla = build_model(sizes, 30).eval(), build_model(compose(["model=tiny"]).model, 30).eval()
    vanilla.load_state_dict(model.state_dict())
    ids = torch.randint(2, 30, (2, 60))
    torch.testing.assert_close(model(ids[:, :32]), vanilla(ids[:, :32]))
    assert not torch.allclose(model(ids), vanilla(ids))


@torch.no_grad()
def test_canon_layers_see_three_characters_back() -> None:
    model = build_model(compose(["attention=nope", "model=tiny", "model.canon=true"]).model, 30).eval()
    convolution: Any = model.blocks[0].canon_attn
    x = torch.randn(2, 9, 32)
    padded = torch.cat((torch.zeros(2, 3, 32), x), 1)
    expected = torch.stack(
        [x[:, t] + sum(convolution.weight[i] * padded[:, t + 3 - i] for i in range(4)) for t in range(9)], 1
    )
    torch.testing.assert_close(convolution(x), expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["attention=gqa", "model.attention.n_kv_head=3"], "model.attention.n_kv_head=3: must divide"),
        (["attention=differential", "model.n_head=1"], "model.n_head=1: must be even"),
        (["attention=rope", "model.n_head=32"], "model.n_head=32: leaves 1 channels"),
        (["attention=perceiver", "model.n_layer=1"], "model.n_layer=1, block.latents=64: must"),
        (["attention=perceiver", "model.mask_pads=true"], "model.mask_pads=true: must be false with latent"),
        (["attention=sliding_window", "model.attention.window=0"], "model.attention.window=0, "),
        (["attention=synthesizer_factorized_dense", "model.block_size=200"], "model.attention.rows=8, "),
        (["attention=synthesizer_factorized_random", "model.attention.rank=0"], "model.attention.rank=0: "),
    ],
)
def test_numbers_that_do_not_fit(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        _build_on_meta(compose(["model=tiny", *overrides]), 30)
    assert str(caught.value).startswith(message)
