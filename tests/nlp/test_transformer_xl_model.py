"""Transformer-XL against its definition, form against form, and its sizes against the released ones."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformer_xl_definition as definition
from torch import Tensor, nn

from nlp.config.transformer_xl import ModelConfig
from nlp.transformer_xl import Reach, TransformerXL, empty_memory
from nlp.transformer_xl.adaptive import AdaptiveSoftmax
from nlp.transformer_xl.attention import FORMS, textbook
from repro.interop.architectures import infer

WORDS = 13


def tiny(**options: Any) -> ModelConfig:
    """A model small enough to be gone through pair by pair."""
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 2, "d_head": 3, "d_embed": 6, "d_model": 6, "d_inner": 8}
    more: dict[str, Any] = {"dropout": 0.0, "mem_len": 4, "cutoffs": [5, 9], "tie_projs": [False, True, True]}
    return ModelConfig(**{**sizes, **more, **options})


def build(options: ModelConfig, words: int = WORDS) -> TransformerXL:
    """Build a model in float64 with weights large enough that all of them matter."""
    torch.manual_seed(0)
    model = TransformerXL(replace(options, init_std=0.6, proj_init_std=0.6), words).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.5)
    return model


def text(streams: int, length: int, words: int = WORDS) -> Tensor:
    return torch.randint(words, (streams, length), generator=torch.Generator().manual_seed(1))


def read(
    model: TransformerXL, words: Tensor, segments: list[int], mem_len: int | None = None, **how: Any
) -> Tensor:
    """Return the negative log-likelihoods [B, T] of a text read in segments."""
    memory, found, at = empty_memory(model.options, len(words), mem_len=mem_len), [], 0
    for length in segments:
        inputs, targets = words[:, at : at + length], words[:, at + 1 : at + length + 1]
        losses, memory = model(inputs, targets, memory, **how)
        found.append(losses)
        at += length
    return torch.cat(found, 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"same_length": True},
        {"clamp_len": 2},
        {"pre_lnorm": True},
        {"mem_len": 0},
        {"mem_len": 7, "same_length": True, "clamp_len": 3},
        {"cutoffs": [], "tie_projs": [False]},
        {"tie_word_embeddings": False},
        {"d_embed": 4},
        {"d_embed": 4, "tie_projs": [True, True, True]},
        {"d_embed": 8, "div_val": 2},
        {"div_val": 2, "tie_projs": [False, False, False], "tie_word_embeddings": False},
    ],
    ids=str,
)
def test_definition(options: dict[str, Any]) -> None:
    """Every log-likelihood and the one distribution over all words, segment by segment with memory."""
    model = build(tiny(**options))
    words, segments = text(2, 12), [3, 3, 3, 2]
    weights = {name: p.detach() for name, p in model.state_dict().items()}
    found = read(model, words, segments)
    for stream, row in enumerate(words):
        expected = definition.log_probs(
            weights, model.options, row[:11].tolist(), segments, model.options.mem_len
        )
        picked = expected.gather(1, row[1:, None])[:, 0]
        torch.testing.assert_close(-found[stream], picked, rtol=0, atol=1e-5)
        memory = empty_memory(model.options, 1)
        for part in row[:11].split(segments):
            after, memory = model.log_prob(part[None], memory)
        torch.testing.assert_close(after[0], expected[-1], rtol=0, atol=1e-5)
        assert after.exp().sum().item() == pytest.approx(1)


def test_memory_is_as_good_as_one_pass() -> None:
    """Where it holds all that came before, segments of any length give what one long segment gives."""
    model = build(tiny(mem_len=12))
    words = text(3, 12)
    whole = read(model, words, [11])
    for segments in ([4, 4, 3], [1] * 11, [1, 6, 4]):
        torch.testing.assert_close(read(model, words, segments), whole)
    assert not torch.allclose(read(model, words, [4, 4, 3], mem_len=3), whole)


def test_reach_goes_before_the_models_own() -> None:
    """Evaluation may have another memory, the same length for all, and clamped distances."""
    words = text(2, 12)
    plain = build(tiny())
    other = build(tiny(mem_len=6, same_length=True, clamp_len=2))
    expected = read(other, words, [3, 3, 5])
    torch.testing.assert_close(read(plain, words, [3, 3, 5], 6, reach=Reach(True, 2)), expected)
    assert not torch.allclose(read(plain, words, [3, 3, 5], 6), expected)


@pytest.mark.parametrize("form", ["explicit", "fused"])
@pytest.mark.parametrize(("queries", "keys", "batch"), [(7, 12, 3), (5, 5, 1), (1, 9, 2), (3, 11, 1)])
def test_forms_of_attention(form: str, queries: int, keys: int, batch: int) -> None:
    """All are the textbook's, with every gradient, to 1e-5 in float32 and to rounding in float64."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        tensors, mask = inputs(batch, queries, keys, dtype)
        grad = torch.randn(batch, queries, 4, 5, dtype=dtype)
        expected = textbook(*tensors, mask, 0.0)
        gradients = torch.autograd.grad(expected, tensors, grad)
        found = FORMS[form](*tensors, mask, 0.0)
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
        for ours, theirs in zip(torch.autograd.grad(found, tensors, grad), gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def inputs(batch: int, queries: int, keys: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Arguments of a form of attention, some of whose keys cannot be seen."""
    torch.manual_seed(0)
    shapes = [(batch, queries, 4, 5), (batch, keys, 4, 5), (batch, keys, 4, 5), (keys, 4, 5), (4, 5), (4, 5)]
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    hidden = (distance < 0) | ((torch.arange(keys) < 2) & (distance > 0))
    mask = torch.zeros(queries, keys, dtype=dtype).masked_fill(hidden, -math.inf)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes], mask


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_attention(form: str) -> None:
    """By finite differences."""
    tensors, mask = inputs(2, 3, 5, torch.float64)
    torch.autograd.gradcheck(lambda *xs: FORMS[form](*xs, mask, 0.0), tensors, fast_mode=True)


@pytest.mark.parametrize("form", FORMS)
def test_dropout_of_attention(form: str) -> None:
    """On average it changes nothing: values of 1 stay 1 within the noise of 4,000 weights a query."""
    tensors, _ = inputs(40, 3, 100, torch.float32)
    tensors[2] = torch.ones_like(tensors[2])
    mask = torch.zeros(3, 100)
    tensors[0] = tensors[0] * 0
    tensors[4], tensors[5] = tensors[4] * 0, tensors[5] * 0
    found = FORMS[form](*tensors, mask, 0.25)
    assert found.mean().item() == pytest.approx(1, abs=0.01)
    assert found.std().item() == pytest.approx((0.25 / 0.75 / 100) ** 0.5, rel=0.1)


@pytest.mark.parametrize("form", FORMS)
def test_half_precision(form: str) -> None:
    """Under autocast the losses are float32 and close; the gradients arrive, finite."""
    options = tiny(attention=form, d_model=16, d_embed=16)
    torch.manual_seed(0)
    model = TransformerXL(options, WORDS)
    words = text(2, 13)
    expected = read(model, words, [6, 6])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = read(model, words, [6, 6])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    found.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_every_parameter_has_a_gradient() -> None:
    """Also where no word of the batch is in a part of the vocabulary: several processes rely on that."""
    for options in ({}, {"div_val": 2}, {"d_embed": 4}):
        model = build(tiny(**options))
        read(model, torch.ones(2, 4, dtype=torch.int64), [3]).mean().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_adaptive_softmax_is_torchs() -> None:
    """torch's own has the parts' classes in order, the checkpoints' in reverse; else they are the same."""
    torch.manual_seed(0)
    ours = AdaptiveSoftmax(WORDS, 6, 6, [5, 9], 1).double()
    for p in ours.parameters():
        nn.init.normal_(p)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(6, WORDS, [5, 9], div_value=1.0, head_bias=True).double()
    layer = ours.out_layers[0]
    weights = {"head.weight": torch.cat([layer.weight[:5], ours.cluster_weight.flip(0)])}
    weights["head.bias"] = torch.cat([layer.bias[:5], ours.cluster_bias.flip(0)])
    for part, (begin, end) in enumerate([(5, 9), (9, 13)]):
        weights |= {f"tail.{part}.0.weight": torch.eye(6), f"tail.{part}.1.weight": layer.weight[begin:end]}
        with torch.no_grad():
            layer.bias[begin:end] = 0  # torch's tails have none
    theirs.load_state_dict(weights)
    hidden, words = torch.randn(50, 6, dtype=torch.float64), text(1, 50)[0]
    torch.testing.assert_close(ours(hidden, words), -theirs(hidden, words).output)
    torch.testing.assert_close(ours.log_prob(hidden), theirs.log_prob(hidden))


def test_sizes_of_the_released_runs() -> None:
    """151,107,538 parameters, 41,066,400 of them in the layers, under the names of its checkpoints."""
    options = ModelConfig(
        n_layer=16,
        n_head=10,
        d_head=41,
        d_embed=410,
        d_model=410,
        d_inner=2100,
        mem_len=150,
        cutoffs=[20000, 40000, 200000],
        tie_projs=[False, True, True, True],
    )
    with torch.device("meta"):
        model = TransformerXL(options, 267_735)
        words = torch.zeros(2, 150, dtype=torch.int64)
        losses, memory = model(words, words, empty_memory(options, 2, "meta"))
    assert sum(p.numel() for p in model.parameters()) == 151_107_538
    assert sum(p.numel() for p in model.layers.parameters()) == 41_066_400
    assert (losses.shape, memory.states.shape) == ((2, 150), (16, 2, 150, 410))
    found = infer({name: tuple(p.shape) for name, p in model.state_dict().items()})
    assert str(found) == (
        "Transformer-XL (width 410, layers 16, heads 10, head 41, MLP 2100, vocabulary 267735)"
    )


@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_initial_weights(init: str) -> None:
    """As the original draws them: norms around 1, biases 0, projections half as wide."""
    torch.manual_seed(0)
    options = tiny(d_model=64, d_embed=32, d_inner=64, n_head=4, d_head=16, init=init, init_range=0.05)
    for name, p in TransformerXL(options, 4000).named_parameters():
        if "layer_norm.weight" in name:
            assert p.mean().item() == pytest.approx(1, abs=0.02), name
            assert p.std().item() == pytest.approx(0.02, rel=0.4), name
        elif name.endswith("bias") and not name.startswith("r_"):
            assert not p.any(), name
        elif "emb_projs" in name or "out_projs" in name:
            assert p.std().item() == pytest.approx(0.01, rel=0.1), name
        else:
            std = 0.02 if init == "normal" else 0.05 / 3**0.5
            assert p.std().item() == pytest.approx(std, rel=0.2), name
            assert (p.abs().max() <= 0.05) == (init == "uniform") or p.numel() < 1000, name


def test_one_shape_for_all_segments() -> None:
    """The memory is as long before the first segment as later, empty: that is what is compiled."""
    options = tiny()
    memory = empty_memory(options, 2)
    shapes = set()
    model = build(options)
    for part in text(2, 9).split(3, 1):
        shapes.add((memory.states.shape, memory.filled.shape))
        _, memory = model(part, part, memory)
    assert shapes == {((2, 2, 4, 6), ())}
    assert memory.filled == 4
    assert not memory.states.requires_grad
