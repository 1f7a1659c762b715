"""Lemma 1 of the paper: Nesterov's acceleration needs no gradient at an extrapolated point."""

import numpy as np
import pytest
import torch
from harness import build

import adan_optim


def quadratic(seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((6, 6))
    a = a @ a.T / 6 + 0.1 * np.eye(6)
    b = rng.standard_normal(6)
    return lambda x: a @ x - b, rng.standard_normal(6)


@pytest.mark.parametrize("beta", [0.02, 0.1, 0.5])
def test_lemma_1(beta):
    """x_k of the reformulation is the extrapolated point e_k, and M_k = (1-b)^2 m_{k-1} + (2-b) g_k.

    beta is the paper's, 1 minus the decay factor.
    """
    gradient, start = quadratic()
    eta = 0.05
    theta, m = start.copy(), np.zeros(6)
    x, big, g_prev = start.copy(), np.zeros(6), np.zeros(6)
    for _ in range(60):
        e = theta - eta * (1 - beta) * m
        g = gradient(e)
        expected = (1 - beta) ** 2 * m + (2 - beta) * g
        m = (1 - beta) * m + g
        theta = theta - eta * m
        np.testing.assert_allclose(x, e, rtol=0, atol=1e-12)
        g = gradient(x)
        big = (1 - beta) * big + (g + (1 - beta) * (g - g_prev))
        np.testing.assert_allclose(big, expected, rtol=0, atol=1e-12)
        x, g_prev = x - eta * big, g


@pytest.mark.parametrize("path", adan_optim.CARDS["adan"].paths)
def test_adans_first_and_second_moment_are_nesterovs(path):
    """With b1 = b2 = b, m + b v is the average with decay b of the Nesterov gradient g + b (g - g_prev).

    So with a denominator that eps makes constant (eps much larger than sqrt(n)), Adan is the accelerated
    method of Lemma 1, apart from bias corrections, which are gone after 300 steps with b = 0.9, and from
    the first difference, which is zero instead of g.
    """
    gradient, start = quadratic(1)
    b, eps, eta = 0.9, 1e9, 0.02
    p = torch.tensor(start, requires_grad=True)
    optimizer = build("adan", [p], path, lr=eta * eps, betas=(b, b, b), eps=eps, weight_decay=0.0)
    average, g_prev = np.zeros(6), None
    for step in range(400):
        g = gradient(p.detach().numpy())
        average = b * average + (1 - b) * (g + b * (g - (g if g_prev is None else g_prev)))
        before, g_prev = p.detach().numpy().copy(), g
        p.grad = torch.tensor(g)
        optimizer.step()
        if step > 300:
            np.testing.assert_allclose(p.detach().numpy(), before - eta * average, rtol=0, atol=1e-9)
