"""Word-level LSTM language model with the regularisation of AWD-LSTM (Merity et al., arXiv 1708.02182).

With every probability 0, it is LSTM layers between an embedding and a softmax. Tensors are batch first.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlp.config.lstm import LSTMConfig

INIT_RANGE = 0.1  # of the embedding and the softmax, uniform; arXiv 1708.02182, section 5

Hidden = list[tuple[Tensor, Tensor]]  # per layer: hidden and cell state, each [1, batch, width]


class Output(NamedTuple):
    """Output of the model."""

    logits: Tensor  # [batch, time, words]
    hidden: Hidden  # after the last word
    last: Tensor  # the last layer's output [batch, time, width]
    dropped: Tensor  # the same after dropout, the input of the softmax


class LSTMLanguageModel(nn.Module):
    """Embedding, `nlayers` LSTM layers, and a softmax over the vocabulary, tied to the embedding or not.

    Layers are `nhid` wide; with tied weights, the last is as wide as the embedding.
    """

    def __init__(self, config: LSTMConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        last = config.emsize if config.tied else config.nhid
        widths = [config.emsize, *[config.nhid] * (config.nlayers - 1), last]
        self.embedding = nn.Embedding(vocab_size, config.emsize)
        self.layers = nn.ModuleList(
            nn.LSTM(widths[i], widths[i + 1], batch_first=True) for i in range(config.nlayers)
        )
        self.softmax = nn.Linear(last, vocab_size)
        if config.tied:
            self.softmax.weight = self.embedding.weight
        for weight in {self.embedding.weight, self.softmax.weight}:
            nn.init.uniform_(weight, -INIT_RANGE, INIT_RANGE)
        nn.init.zeros_(self.softmax.bias)

    def forward(self, ids: Tensor, hidden: Hidden | None = None) -> Output:
        """Return scores for the word after each of `ids` [batch, time], continuing from `hidden`."""
        config, training = self.config, self.training
        x = F.embedding(ids, self.embedding.weight)
        if training and config.dropoute:  # drops a word everywhere in the batch
            mask = F.dropout(x.new_ones(self.embedding.num_embeddings), config.dropoute)
            x = x * mask[ids].unsqueeze(-1)
        x = locked_dropout(x, config.dropouti, training)
        after: Hidden = []
        for i, layer in enumerate(self.layers):
            if i:
                x = locked_dropout(x, config.dropouth, training)
            x, state = _run(layer, x, None if hidden is None else hidden[i], config.wdrop)
            after.append(state)
        dropped = locked_dropout(x, config.dropout, training)
        return Output(self.softmax(dropped), after, x, dropped)


def locked_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Drop features of x [batch, time, features], the same at all times (Gal and Ghahramani, 2016)."""
    if not training or p == 0:
        return x
    return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), p)


def activation_penalty(output: Output, alpha: float, beta: float) -> Tensor:
    """Return alpha * mean(h_t^2), after dropout, + beta * mean((h_t+1 - h_t)^2), before dropout; a scalar.

    These are AR and TAR of arXiv 1708.02182, section 4.6. A segment of one word has no TAR.
    """
    penalty = output.last.new_zeros(())
    if alpha:
        penalty = penalty + alpha * output.dropped.float().square().mean()
    if beta and output.last.shape[1] > 1:
        penalty = penalty + beta * output.last.float().diff(dim=1).square().mean()
    return penalty


def _run(layer: Any, x: Tensor, state: tuple[Tensor, Tensor] | None, p: float) -> tuple[Tensor, Any]:
    """Run a one-layer nn.LSTM; in training, drop recurrent weights with probability p (DropConnect).

    One mask serves all times and the whole batch. x, and the output: [batch, time, width]; state: see Hidden.
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):  # few CPUs have an LSTM in bf16
        with torch.autocast("cpu", enabled=False):
            return _run(layer, x.float(), state, p)
    if not layer.training or p == 0:
        return layer(x, state)
    if state is None:
        zeros = x.new_zeros(1, x.shape[0], layer.hidden_size)
        state = (zeros, zeros)
    weights = [layer.weight_ih_l0, F.dropout(layer.weight_hh_l0, p), layer.bias_ih_l0, layer.bias_hh_l0]
    # contiguous and in cuDNN's order, or it would warn and copy them
    pieces = torch.cat([weight.flatten() for weight in weights]).split([w.numel() for w in weights])
    flat = [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]
    # nn.LSTM's own call, as the module takes only parameters as weights
    x, h, c = torch.lstm(x, state, flat, True, 1, 0.0, True, False, True)
    return x, (h, c)
