"""Word embeddings and softmax over a large vocabulary sorted by falling frequency.

`cutoffs` divide the vocabulary: [20000, 40000] with 50,000 words gives the parts 0..20000, 20000..40000 and
40000..50000. The softmax of the first part, the head, has one more class for each other part, and each other
part has a softmax over its own words (Grave et al., arXiv 1609.04309). With `div_val` above 1, the embeddings
of part i are div_val**i times smaller (Baevski and Auli, arXiv 1809.10853).

Names, shapes and order of all tensors are those of the original Transformer-XL, so its checkpoints load.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AdaptiveEmbedding(nn.Module):
    """Embeddings of words, multiplied by the square root of d_proj."""

    def __init__(
        self, vocab_size: int, d_embed: int, d_proj: int, cutoffs: Sequence[int], div_val: int
    ) -> None:
        super().__init__()
        self.d_proj = d_proj
        self.ends = [0, *cutoffs, vocab_size] if div_val > 1 else [0, vocab_size]
        sizes = [d_embed // div_val**part for part in range(len(self.ends) - 1)]
        self.emb_layers = nn.ModuleList(
            nn.Embedding(end - begin, size)
            for (begin, end), size in zip(pairwise(self.ends), sizes, strict=True)
        )
        self.emb_projs = nn.ParameterList(
            nn.Parameter(torch.empty(d_proj, size)) for size in sizes if div_val > 1 or d_embed != d_proj
        )

    def forward(self, words: Tensor) -> Tensor:
        """Return embeddings [..., d_proj] of words [...], int64."""
        if len(self.emb_layers) == 1:
            embedded = self._embed(0, words)
        else:
            flat = words.flatten()
            parts = [_members(flat, begin, end) for begin, end in pairwise(self.ends)]
            rows = [self._embed(part, flat[at] - self.ends[part]) for part, at in enumerate(parts)]
            # parts without a word are included, so that all have a gradient in every process
            order = torch.cat(parts)
            embedded = torch.cat(rows).new_empty(len(flat), self.d_proj).index_copy(0, order, torch.cat(rows))
            embedded = embedded.view(*words.shape, self.d_proj)
        return embedded * self.d_proj**0.5

    def _embed(self, part: int, words: Tensor) -> Tensor:
        embedded = self.emb_layers[part](words)
        return F.linear(embedded, self.emb_projs[part]) if len(self.emb_projs) else embedded


class AdaptiveSoftmax(nn.Module):
    """Negative log-likelihoods of words given hidden states, in nats."""

    def __init__(
        self, vocab_size: int, d_embed: int, d_proj: int, cutoffs: Sequence[int], div_val: int
    ) -> None:
        super().__init__()
        self.ends = [0, *cutoffs, vocab_size]
        self.div_val = div_val
        parts = len(self.ends) - 1
        sizes = [d_embed // div_val**part for part in range(parts)]
        if parts > 1:
            self.cluster_weight = nn.Parameter(torch.empty(parts - 1, d_embed))
            self.cluster_bias = nn.Parameter(torch.empty(parts - 1))
        if div_val > 1:
            layers = [
                nn.Linear(size, end - begin)
                for (begin, end), size in zip(pairwise(self.ends), sizes, strict=True)
            ]
        else:
            layers = [nn.Linear(d_embed, vocab_size)]
        self.out_layers = nn.ModuleList(layers)
        self.out_projs = nn.ParameterList(
            nn.Parameter(torch.empty(d_proj, size)) for size in sizes if div_val > 1 or d_embed != d_proj
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """Return the negative log-likelihoods [N] of words [N] after hidden [N, d_proj], at least float32."""
        classes = words
        for part in range(1, len(self.ends) - 1):
            # the head's classes for the other parts are in reverse order
            inside = (words >= self.ends[part]) & (words < self.ends[part + 1])
            classes = classes.masked_fill(inside, self.ends[1] + len(self.ends) - 2 - part)
        found = _cross_entropy(self._scores(0, hidden), classes)
        for part in range(1, len(self.ends) - 1):
            rows = _members(words, self.ends[part], self.ends[part + 1])
            scores = self._scores(part, hidden[rows])
            found = found.index_add(0, rows, _cross_entropy(scores, words[rows] - self.ends[part]))
        return found

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Return the log-probabilities [N, words] of all words after hidden [N, d_proj]."""
        head = self._scores(0, hidden).log_softmax(1)
        found = [head[:, : self.ends[1]]]
        for part in range(1, len(self.ends) - 1):
            found.append(self._scores(part, hidden).log_softmax(1) + head[:, -part, None])
        return torch.cat(found, 1)

    def _scores(self, part: int, hidden: Tensor) -> Tensor:
        """Return the logits [N, classes] of a part's words and, in the head, then of the other parts."""
        layer: Any = self.out_layers[part if self.div_val > 1 else 0]
        weight, bias = layer.weight, layer.bias
        if self.div_val == 1:
            words = slice(self.ends[part], self.ends[part + 1])
            weight, bias = weight[words], bias[words]
        if part == 0 and len(self.ends) > 2:
            weight, bias = torch.cat([weight, self.cluster_weight]), torch.cat([bias, self.cluster_bias])
        if len(self.out_projs):
            hidden = hidden @ self.out_projs[part]
        return F.linear(hidden, weight, bias)


def _cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return F.cross_entropy(scores, classes, reduction="none")


def _members(words: Tensor, begin: int, end: int) -> Tensor:
    """Return the places, among words [N], of the words of a part.

    On the meta device, where words have no values, all are in the first part.
    """
    if words.is_meta:
        return torch.arange(len(words) if begin == 0 else 0, device="meta")
    return ((words >= begin) & (words < end)).nonzero()[:, 0]
