"""The update rules a second time: float64 NumPy, written from the papers, importing nothing of this project.

A rule takes a parameter, its gradient (unscaled, clipped, of the function to minimise), the states, the step
count t = 1, 2, ... and the hyper-parameters, and returns the new parameter and states. A new optimizer is
added to the tests by its rule here, its card, and its line in `VARIANTS` of harness.py.
"""

import numpy as np


def adan(p, g, s, t, *, lr, betas, eps, weight_decay, no_prox=False):
    """arXiv 2208.06677, Algorithm 1, betas as decay factors, with the official code's bias corrections."""
    b1, b2, b3 = betas
    g_prev = g if t == 1 else -s["neg_pre_grad"]
    m = b1 * s["exp_avg"] + (1 - b1) * g
    v = b2 * s["exp_avg_diff"] + (1 - b2) * (g - g_prev)
    n = b3 * s["exp_avg_sq"] + (1 - b3) * (g + b2 * (g - g_prev)) ** 2
    u = (m / (1 - b1**t) + b2 * v / (1 - b2**t)) / (np.sqrt(n) / np.sqrt(1 - b3**t) + eps)
    p = p * (1 - lr * weight_decay) - lr * u if no_prox else (p - lr * u) / (1 + lr * weight_decay)
    return p, {"exp_avg": m, "exp_avg_diff": v, "exp_avg_sq": n, "neg_pre_grad": -g}


def adamw(p, g, s, t, *, lr, betas, eps, weight_decay):
    """arXiv 1711.05101, Algorithm 2."""
    b1, b2 = betas
    m = b1 * s["exp_avg"] + (1 - b1) * g
    v = b2 * s["exp_avg_sq"] + (1 - b2) * g**2
    u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    return p - lr * (u + weight_decay * p), {"exp_avg": m, "exp_avg_sq": v}


RULES = {
    "adan": (adan, ("exp_avg", "exp_avg_diff", "exp_avg_sq", "neg_pre_grad")),
    "adamw": (adamw, ("exp_avg", "exp_avg_sq")),
}


def clip_coefficient(grads, max_norm, eps):
    """min(1, max_norm / (norm + eps)) over all gradients."""
    norm = np.sqrt(sum((g**2).sum() for g in grads))
    return min(1.0, max_norm / (norm + eps))


class Oracle:
    """An optimizer on float64 arrays, each with its own step count: `params`, `states`, `steps`.

    Args:
        name: of the rule.
        groups: pairs of a list of arrays and the hyper-parameters of the group, `maximize` among them.
        max_grad_norm, clip_eps: of the clipping over all groups; 0 is off.
    """

    def __init__(self, name, groups, max_grad_norm=0.0, clip_eps=0.0):
        self.rule, self.names = RULES[name]
        self.params = [np.array(p, np.float64) for arrays, _ in groups for p in arrays]
        self.hyper = [dict(hyper) for arrays, hyper in groups for _ in arrays]
        self.states = [{name: np.zeros_like(p) for name in self.names} for p in self.params]
        self.steps = [0] * len(self.params)
        self.max_grad_norm, self.clip_eps = max_grad_norm, clip_eps

    def step(self, grads):
        """One step; a gradient that is None leaves its parameter alone."""
        given = [g for g in grads if g is not None]
        c = clip_coefficient(given, self.max_grad_norm, self.clip_eps) if self.max_grad_norm else 1.0
        for i, g in enumerate(grads):
            if g is None:
                continue
            hyper = dict(self.hyper[i])
            sign = -1.0 if hyper.pop("maximize", False) else 1.0
            self.steps[i] += 1
            self.params[i], self.states[i] = self.rule(
                self.params[i], sign * c * g, self.states[i], self.steps[i], **hyper
            )
