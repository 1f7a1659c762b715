"""The losses of a mixture of experts' routers, and what becomes of the experts.

All take the routers' scores as transformers returns them: for each layer a tensor [tokens, experts], of which
every token goes to the `top_k` largest.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def z_loss(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean over tokens and layers of log(sum of exp(score))^2, in float32.

    It keeps scores small (ST-MoE, arXiv 2202.08906, eq. 5).
    """
    return torch.stack([scores.float().logsumexp(-1).square().mean() for scores in logits]).mean()


def balance(logits: Sequence[Tensor], top_k: int) -> Tensor:
    """Return the load-balancing loss of Switch Transformer (arXiv 2101.03961, eq. 4 to 6), mean over layers.

    Of a layer it is the number of experts times the sum over them of f P: the share of tokens that go to an
    expert, and its mean probability. It is `top_k` where both are even, and more where they are not.
    transformers' takes all layers as one, so that what is uneven in one of them may cancel in another.
    """
    found = sums(logits, top_k)
    return _balance(found["chosen"], found["chance"], len(logits[0])).mean()


def _balance(chosen: Tensor, chance: Tensor, tokens: float) -> Tensor:
    return chosen.shape[1] * (chosen / tokens * (chance / tokens)).sum(1)


def sums(logits: Sequence[Tensor], top_k: int) -> dict[str, Tensor]:
    """Return sums over the tokens of a batch, which `figures` takes; each has a row for each layer.

    Returns:
        entropy [layers] of the probabilities, in nats; z [layers], the terms of z_loss; chance
        [layers, experts], the probabilities; chosen [layers, experts], how many tokens went there.
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
    """Return what is recorded of the sums over `tokens` tokens of a validation set.

    Returns:
        valid_router_entropy: mean over tokens and layers, in nats; log(experts) where all are as likely.
        valid_expert_share_min, valid_expert_share_max: the smallest and the largest share of a layer's work
            that an expert has; 1 / experts where the load is balanced.
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
