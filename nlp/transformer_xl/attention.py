"""Attention with relative positions (arXiv 1901.02860, section 3.3), in three equivalent forms.

The score of key j for query i is a sum of four terms, computed as two products by adding a bias to the query
first:

    (q_i + u) . k_j  +  (q_i + v) . r_{i-j}

where r_n is the embedding of distance n, and u and v are biases. `r` holds the r_n by falling distance, K-1
to 0, so the second product is ordered by distance, and its rows must be shifted to be ordered by key. That is
one change of strides: with an empty column before the first, each row ends where the next one's keys begin.

Shapes: queries [B, T, H, D]; keys and values [B, K, H, D], of which the last T are the queries' own; r
[K, H, D]; biases [H, D]; mask [T, K], added to the scores: 0, or -inf for forbidden keys. All forms return
[B, T, H, D].
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def textbook(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor, bias_k: Tensor, bias_r: Tensor, mask: Tensor, dropout: float
) -> Tensor:
    """Compute attention as defined, in the original's layout: scores are [T, K, B, H]."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    by_content = torch.einsum("ibhd,jbhd->ijbh", q + bias_k, k)
    by_position = shifted(torch.einsum("ibhd,jhd->ijbh", q + bias_r, r))
    scores = (by_content + by_position).mul_(1 / math.sqrt(q.shape[-1])) + mask[:, :, None, None]
    weights = F.dropout(scores.softmax(1), dropout)
    return torch.einsum("ijbh,jbhd->ibhd", weights, v).transpose(0, 1)


def shifted(x: Tensor) -> Tensor:
    """Reorder scores [T, K, ...] from falling distance to keys; those above the diagonal are meaningless."""
    queries, keys, *rest = x.shape
    padded = torch.cat([x.new_zeros(queries, 1, *rest), x], 1)
    return padded.view(keys + 1, queries, *rest)[1:].view(x.shape)


def explicit(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor, bias_k: Tensor, bias_r: Tensor, mask: Tensor, dropout: float
) -> Tensor:
    """Compute attention with heads and batch outermost, and all scores in one buffer."""
    content, position, k, r = _prepared(q, k, r, bias_k, bias_r)
    weights = F.dropout(_Weights.apply(content, position, k, r, mask), dropout)
    heads, batch = content.shape[:2]
    v = v.permute(2, 0, 1, 3).reshape(heads * batch, *v.shape[1::2])
    return torch.bmm(weights, v).view(heads, batch, -1, v.shape[-1]).permute(1, 2, 0, 3)


def fused(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor, bias_k: Tensor, bias_r: Tensor, mask: Tensor, dropout: float
) -> Tensor:
    """Compute attention by torch's scaled_dot_product_attention, with the scores of positions as a bias."""
    content, position, k, r = _prepared(q, k, r, bias_k, bias_r)
    heads, batch, queries, size = content.shape
    by_distance = torch.bmm(position.view(heads, batch * queries, size), r.transpose(1, 2))
    bias = _by_key(by_distance, queries).view(heads, batch, queries, -1) + mask.to(q.dtype)
    empty = -size % 8  # its kernels need head sizes that are multiples of 8
    found = F.scaled_dot_product_attention(
        F.pad(content, (0, empty)),
        F.pad(k, (0, empty)),
        F.pad(v.permute(2, 0, 1, 3), (0, empty)),
        attn_mask=bias,
        dropout_p=dropout,
        scale=1.0,
    )
    return found[..., :size].permute(1, 2, 0, 3)


Attention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
FORMS: dict[str, Attention] = {"textbook": textbook, "explicit": explicit, "fused": fused}


def attend(form: str, q: Tensor, *rest: Any) -> Tensor:
    """Compute attention in one of FORMS; `auto` is the fastest on the device. See the module for shapes."""
    if form == "auto":
        form = "fused" if q.is_cuda else "explicit"
    return FORMS[form](q, *rest)


def _prepared(
    q: Tensor, k: Tensor, r: Tensor, bias_k: Tensor, bias_r: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return scaled queries for both products [H, B, T, D], keys [H, B, K, D] and positions [H, K+1, D].

    The added first position is 0: the empty column.
    """
    scale = 1 / math.sqrt(q.shape[-1])
    q = q.permute(2, 0, 1, 3) * scale
    content, position = (
        (q + (bias * scale)[:, None, None].to(q.dtype)).contiguous() for bias in (bias_k, bias_r)
    )
    return content, position, k.permute(2, 0, 1, 3).contiguous(), F.pad(r.transpose(0, 1), (0, 0, 1, 0))


def _by_key(by_distance: Tensor, queries: int) -> Tensor:
    """Return a view [H*B, T, K] by key of scores [H, B*T, K+1] by distance."""
    width = by_distance.shape[-1]
    flat = by_distance.view(-1, queries * width)
    return flat[:, queries:].view(-1, queries, width - 1)


class _Weights(torch.autograd.Function):
    """softmax(content k^T + by_key(position r^T) + mask), [H*B, T, K].

    Both products share a buffer, and so do their gradients: shifting copies nothing.
    """

    @staticmethod
    def forward(ctx: Any, content: Tensor, position: Tensor, k: Tensor, r: Tensor, mask: Tensor) -> Tensor:
        heads, batch, queries, size = content.shape
        by_distance = torch.bmm(position.view(heads, batch * queries, size), r.transpose(1, 2))
        scores = _by_key(by_distance, queries)
        keys = k.view(heads * batch, -1, size).transpose(1, 2)
        torch.baddbmm(scores, content.view(-1, queries, size), keys, out=scores)
        weights = (scores + mask).softmax(-1).to(content.dtype)
        ctx.save_for_backward(content, position, k, r, weights)
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        content, position, k, r, weights = ctx.saved_tensors
        heads, batch, queries, size = content.shape
        by_distance = weights.new_empty(heads, batch * queries, r.shape[1])
        by_distance.view(-1, queries * r.shape[1])[:, :queries] = 0
        scores = _by_key(by_distance, queries)
        # 0 where the mask is -inf; the view moves no other values into another row
        scores.copy_(torch._softmax_backward_data(gradient, weights, -1, weights.dtype))
        flat = position.view(heads, batch * queries, size)
        return (
            torch.bmm(scores, k.view(heads * batch, -1, size)).view(content.shape),
            torch.bmm(by_distance, r).view(position.shape),
            torch.bmm(scores.transpose(1, 2), content.view(-1, queries, size)).view(k.shape),
            torch.bmm(by_distance.transpose(1, 2), flat),
            None,
        )
