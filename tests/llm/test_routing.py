"""Routers' losses and figures against their definitions in float64, token by token."""

import math

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from llm import routing

LAYERS, TOKENS, EXPERTS, TOP = 3, 40, 4, 2


@pytest.fixture
def logits() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    bias = torch.tensor([1.0, 0.0, 0.0, -2.0])  # so that the load is not balanced
    return tuple(torch.randn(TOKENS, EXPERTS, generator=generator) * 2 + bias for _ in range(LAYERS))


def chances(row: list[float]) -> list[float]:
    powers = [math.exp(score) for score in row]
    return [power / sum(powers) for power in powers]


def chosen(row: list[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda expert: -row[expert])[:TOP]


def test_z_loss(logits: tuple[Tensor, ...]) -> None:
    rows = [row for layer in logits for row in layer.tolist()]
    expected = sum(math.log(sum(math.exp(x) for x in row)) ** 2 for row in rows) / len(rows)
    assert float(routing.z_loss(logits)) == pytest.approx(expected, rel=1e-6)
    assert float(routing.z_loss([layer.bfloat16() for layer in logits])) == pytest.approx(expected, rel=1e-2)


def test_z_loss_makes_scores_smaller() -> None:
    scores = torch.randn(5, EXPERTS, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(routing.z_loss([scores]), scores)
    terms = scores.detach().logsumexp(-1, keepdim=True)
    torch.testing.assert_close(gradient, 2 / 5 * terms * scores.detach().softmax(-1))


def balance(rows: list[list[float]]) -> float:
    """Experts times the sum over experts of the share of rows that go there and of its mean probability."""
    total = 0.0
    for expert in range(EXPERTS):
        went = sum(expert in chosen(row) for row in rows) / len(rows)
        total += went * sum(chances(row)[expert] for row in rows) / len(rows)
    return EXPERTS * total


def test_balance_is_the_mean_over_layers(logits: tuple[Tensor, ...]) -> None:
    by_layer = sum(balance(layer.tolist()) for layer in logits) / LAYERS
    assert float(routing.balance(logits, TOP)) == pytest.approx(by_layer, rel=1e-6)


def test_uneven_layers_do_not_cancel() -> None:
    """As they do in transformers' loss, which takes all layers as one; for one layer the two are the same."""
    first, second = (torch.tensor([[9.0, 9.0, 0.0, 0.0], [0.0, 0.0, 9.0, 9.0]])[[k, k]] for k in (0, 1))
    assert float(load_balancing_loss_func((first, second), EXPERTS, TOP)) == pytest.approx(TOP)
    assert float(routing.balance((first, second), TOP)) == pytest.approx(2 * TOP, rel=1e-3)
    alone = float(load_balancing_loss_func((first,), EXPERTS, TOP))
    assert float(routing.balance((first,), TOP)) == pytest.approx(alone)


def test_balance_evens_out_the_load() -> None:
    scores = torch.randn(200, EXPERTS, generator=torch.Generator().manual_seed(1))
    bias = torch.tensor([1.0, 0.5, 0.0, -1.0], requires_grad=True)
    before = routing.balance([scores + bias], TOP).item()
    for _ in range(200):
        (gradient,) = torch.autograd.grad(routing.balance([scores + bias], TOP), bias)
        bias = (bias - 0.5 * gradient).detach().requires_grad_()
    after = routing.balance([scores + bias], TOP).item()
    assert before > 2.2
    assert after == pytest.approx(TOP, abs=0.02)


def test_figures_of_a_validation_set_in_batches(logits: tuple[Tensor, ...]) -> None:
    sums: dict[str, Tensor] = {}
    for part in (slice(0, 25), slice(25, None)):
        for key, value in routing.sums([layer[part] for layer in logits], TOP).items():
            sums[key] = sums.get(key, torch.zeros(())) + value.double()
    rows = [layer.tolist() for layer in logits]
    flat = [row for layer in rows for row in layer]
    shares = [
        sum(expert in chosen(row) for row in layer) / (TOKENS * TOP)
        for layer in rows
        for expert in range(EXPERTS)
    ]
    entropy = -sum(p * math.log(p) for row in flat for p in chances(row)) / len(flat)
    assert routing.metrics(sums, TOKENS) == pytest.approx(
        {
            "valid_router_entropy": entropy,
            "valid_expert_share_min": min(shares),
            "valid_expert_share_max": max(shares),
            "valid_balance_loss": float(routing.balance(logits, TOP)),
            "valid_z_loss": float(routing.z_loss(logits)),
        },
        rel=1e-5,
    )
