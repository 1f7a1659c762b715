"""Losses and metrics of the routers in a mixture of experts.

All take the routers' scores as transformers returns them: a tensor [tokens, experts] for each layer. Every
token goes to the `top_k` experts with the largest scores.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def z_loss(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean over tokens and layers of log(sum of exp(score))^2, a scalar, float32.

    It keeps scores small (ST-MoE, arXiv 2202.08906, eq. 5).
    """
    return torch.stack([scores.float().logsumexp(-1).square().mean() for scores in logits]).mean()


def balance(logits: Sequence[Tensor], top_k: int) -> Tensor:
    """Return the load-balancing loss of Switch Transformer (arXiv 2101.03961, eq. 4 to 6), a scalar.

    It is the mean over layers of the number of experts times the sum over experts of f P, where f is the
    share of tokens that go to an expert and P its mean probability. It is `top_k` if both are uniform,
    otherwise larger. transformers pools all layers, so imbalances of different layers may cancel.
    """
    found = sums(logits, top_k)
    return _balance(found["chosen"], found["chance"], len(logits[0])).mean()


def _balance(chosen: Tensor, chance: Tensor, tokens: float) -> Tensor:
    return chosen.shape[1] * (chosen / tokens * (chance / tokens)).sum(1)


def sums(logits: Sequence[Tensor], top_k: int) -> dict[str, Tensor]:
    """Return sums over the tokens of a batch, for `metrics`.

    Returns:
        entropy: of the probabilities, in nats [layers].
        z: the terms of z_loss [layers].
        chance: the probabilities [layers, experts].
        chosen: how many tokens went to each expert [layers, experts].
    """
    scores = torch.stack([each.float() for each in logits])  # [layers, tokens, experts]
    logs = scores.log_softmax(-1)
    chances = logs.exp()
    chosen = torch.zeros_like(scores).scatter(-1, scores.topk(top_k).indices, 1.0)
    return {
        "entropy": -(chances * logs).sum((1, 2)),
        "z": scores.logsumexp(-1).square().sum(1),
        "chance": chances.sum(1),
        "chosen": chosen.sum(1),
    }


def metrics(sums: dict[str, Tensor], tokens: float) -> dict[str, float]:
    """Return the metrics for the `sums` over `tokens` tokens of a validation set.

    Returns:
        valid_router_entropy: mean over tokens and layers, in nats; log(experts) if all are equally likely.
        valid_expert_share_min, valid_expert_share_max: smallest and largest share of an expert in its layer's
            load; 1 / experts if balanced.
        valid_balance_loss, valid_z_loss: see balance and z_loss.
    """
    layers = len(sums["chosen"])
    shares = sums["chosen"] / sums["chosen"].sum(1, keepdim=True)
    rows = tokens * layers
    balances = _balance(sums["chosen"], sums["chance"], tokens)
    return {
        "valid_router_entropy": float(sums["entropy"].sum()) / rows,
        "valid_expert_share_min": float(shares.min()),
        "valid_expert_share_max": float(shares.max()),
        "valid_balance_loss": float(balances.mean()),
        "valid_z_loss": float(sums["z"].sum()) / rows,
    }
