"""The model: a stack of decoder layers over a segment and the memory of earlier ones.

Options and parameters have the names of the original code (kimiyoung/transformer-xl), so its checkpoints
load. Here the batch is the first dimension.

The memory does not grow: its shape is fixed, and a counter has the number of filled slots, so that code
compiled for one segment serves all.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nlp.config.transformer_xl import ModelConfig
from nlp.transformer_xl.adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from nlp.transformer_xl.attention import attend


class Memory(NamedTuple):
    """The layers' inputs in earlier segments.

    states: [n_layer, B, mem_len, d_model], newest last.
    filled: number of slots in use, a scalar, int64.
    """

    states: Tensor
    filled: Tensor


def empty_memory(
    options: ModelConfig, batch: int, device: torch.device | str = "cpu", mem_len: int | None = None
) -> Memory:
    """Return the memory at the beginning of `batch` texts, of the model's length or of `mem_len`."""
    slots = options.mem_len if mem_len is None else mem_len
    states = torch.zeros(options.n_layer, batch, slots, options.d_model, device=device)
    return Memory(states, torch.zeros((), dtype=torch.int64, device=device))


class Reach(NamedTuple):
    """How far attention looks back: options of the model that evaluation may override."""

    same_length: bool
    clamp_len: int


class TransformerXL(nn.Module):
    """Predicts each word of a segment [B, T] from those before it, over mem_len words of memory."""

    def __init__(self, options: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.options = options
        sizes = (vocab_size, options.d_embed, options.d_model, options.cutoffs, options.div_val)
        self.word_emb = AdaptiveEmbedding(*sizes)
        self.drop = nn.Dropout(options.dropout)
        self.pos_emb = PositionEmbedding(options.d_model)
        self.r_w_bias = nn.Parameter(torch.empty(options.n_head, options.d_head))
        self.r_r_bias = nn.Parameter(torch.empty(options.n_head, options.d_head))
        self.layers = nn.ModuleList(Layer(options) for _ in range(options.n_layer))
        self.crit = AdaptiveSoftmax(*sizes)
        self._tie()
        self.apply(self._initialise)
        for bias in (self.r_w_bias, self.r_r_bias):
            self._draw(bias)

    def _tie(self) -> None:
        options = self.options
        if options.tie_word_embeddings:
            for layer, table in zip(self.crit.out_layers, self.word_emb.emb_layers, strict=True):
                layer.weight = table.weight
        for part, tied in enumerate(options.tie_projs):
            if tied and len(self.crit.out_projs):
                self.crit.out_projs[part] = self.word_emb.emb_projs[part if options.div_val > 1 else 0]

    @torch.no_grad()
    def _initialise(self, module: nn.Module) -> None:
        std = self.options.proj_init_std
        if isinstance(module, nn.LayerNorm):
            module.weight.normal_(1.0, self.options.init_std)
            module.bias.zero_()
        elif isinstance(module, nn.Linear):
            self._draw(module.weight)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            self._draw(module.weight)
        elif isinstance(module, AdaptiveEmbedding):
            for projection in module.emb_projs:
                projection.normal_(0.0, std)
        elif isinstance(module, AdaptiveSoftmax):
            for projection in module.out_projs:
                projection.normal_(0.0, std)
            if len(module.ends) > 2:
                self._draw(module.cluster_weight)
                module.cluster_bias.zero_()

    @torch.no_grad()
    def _draw(self, weight: Tensor) -> None:
        if self.options.init == "uniform":
            weight.uniform_(-self.options.init_range, self.options.init_range)
        else:
            weight.normal_(0.0, self.options.init_std)

    def forward(
        self, words: Tensor, targets: Tensor, memory: Memory, reach: Reach | None = None
    ) -> tuple[Tensor, Memory]:
        """Return the negative log-likelihoods of the targets [B, T], in nats, and the new memory.

        See `encode` for the arguments; targets: [B, T].
        """
        hidden, memory = self.encode(words, memory, reach)
        losses = self.crit(hidden.flatten(0, 1), targets.flatten())
        return losses.view(targets.shape), memory

    def log_prob(self, words: Tensor, memory: Memory, reach: Reach | None = None) -> tuple[Tensor, Memory]:
        """Return the log-probabilities [B, words] of the word after the segment, and the new memory."""
        hidden, memory = self.encode(words, memory, reach)
        return self.crit.log_prob(hidden[:, -1]), memory

    def encode(self, words: Tensor, memory: Memory, reach: Reach | None = None) -> tuple[Tensor, Memory]:
        """Return the states [B, T, d_model] after the last layer, and the new memory.

        Args:
            words: the segment, [B, T].
            memory: from empty_memory or from the segment before; the new one has the same length.
            reach: overrides the model's same_length and clamp_len.
        """
        queries, slots = words.shape[1], memory.states.shape[2]
        if reach is None:
            reach = Reach(self.options.same_length, self.options.clamp_len)
        mask, distances = self._positions(queries, slots, memory.filled, reach)
        hidden = self.drop(self.word_emb(words))
        positions = self.drop(self.pos_emb(distances))
        kept = []
        for layer, before in zip(self.layers, memory.states, strict=True):
            context = torch.cat([before.to(hidden.dtype), hidden], 1)
            kept.append(context[:, queries:].detach())
            hidden = layer(hidden, context, positions, self.r_w_bias, self.r_r_bias, mask)
        filled = (memory.filled + queries).clamp(max=slots)
        return self.drop(hidden), Memory(torch.stack(kept), filled)

    def _positions(self, queries: int, slots: int, filled: Tensor, reach: Reach) -> tuple[Tensor, Tensor]:
        """Return the attention mask [T, K] and the falling distances of its positions [K]."""
        weight = self.r_w_bias
        keys = torch.arange(slots + queries, device=weight.device)
        distance = keys[slots:, None] - keys
        hidden = (distance < 0) | (keys < slots - filled)
        if reach.same_length:
            hidden |= distance >= slots
        distances = keys.flip(0).to(weight.dtype)
        if reach.clamp_len > 0:
            distances = distances.clamp(max=reach.clamp_len)
        return weight.new_zeros(hidden.shape).masked_fill(hidden, float("-inf")), distances


class PositionEmbedding(nn.Module):
    """Sines, then cosines, of a distance times wave numbers from 1 down to 1/10000."""

    inv_freq: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1 / 10000 ** (torch.arange(0.0, size, 2.0) / size))

    def forward(self, distances: Tensor) -> Tensor:
        """Return the embeddings [K, size] of distances [K]."""
        angles = torch.outer(distances, self.inv_freq)
        return torch.cat([angles.sin(), angles.cos()], 1)


class Layer(nn.Module):
    """Attention and a two-layer perceptron."""

    def __init__(self, options: ModelConfig) -> None:
        super().__init__()
        self.dec_attn = RelativeAttention(options)
        self.pos_ff = Perceptron(options)

    def forward(
        self, x: Tensor, context: Tensor, positions: Tensor, bias_k: Tensor, bias_r: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the layer's output [B, T, d_model]; see RelativeAttention for the arguments."""
        return self.pos_ff(self.dec_attn(x, context, positions, bias_k, bias_r, mask))


class RelativeAttention(nn.Module):
    """Multi-head attention by content and distance, with a residual connection and a norm."""

    def __init__(self, options: ModelConfig) -> None:
        super().__init__()
        self.options = options
        width = options.n_head * options.d_head
        self.qkv_net = nn.Linear(options.d_model, 3 * width, bias=False)
        self.r_net = nn.Linear(options.d_model, width, bias=False)
        self.o_net = nn.Linear(width, options.d_model, bias=False)
        self.drop = nn.Dropout(options.dropout)
        self.layer_norm = nn.LayerNorm(options.d_model)

    def forward(
        self, x: Tensor, context: Tensor, positions: Tensor, bias_k: Tensor, bias_r: Tensor, mask: Tensor
    ) -> Tensor:
        """Return x plus its attention to the context [B, T, d_model].

        Args:
            x: [B, T, d_model].
            context: [B, K, d_model], ending with x.
            positions: embeddings of the distances [K, d_model].
            bias_k, bias_r: [n_head, d_head].
            mask: [T, K], added to the scores.
        """
        options, queries = self.options, x.shape[1]
        if options.pre_lnorm:
            context = self.layer_norm(context)
        heads = (options.n_head, options.d_head)
        of_q, of_kv = self.qkv_net.weight.split([heads[0] * heads[1], 2 * heads[0] * heads[1]])
        q = F.linear(context[:, -queries:], of_q).unflatten(-1, heads)
        k, v = F.linear(context, of_kv).unflatten(-1, (2, *heads)).unbind(2)
        r = self.r_net(positions).unflatten(-1, heads)
        dropout = options.dropatt if self.training else 0.0
        attended = attend(options.attention, q, k, v, r, bias_k, bias_r, mask, dropout)
        out = x + self.drop(self.o_net(attended.flatten(2)))
        return out if options.pre_lnorm else self.layer_norm(out)


class Perceptron(nn.Module):
    """A perceptron at each position, with a residual connection and a norm."""

    def __init__(self, options: ModelConfig) -> None:
        super().__init__()
        self.pre_lnorm = options.pre_lnorm
        self.CoreNet = nn.Sequential(
            nn.Linear(options.d_model, options.d_inner),
            nn.ReLU(inplace=True),
            nn.Dropout(options.dropout),
            nn.Linear(options.d_inner, options.d_model),
            nn.Dropout(options.dropout),
        )
        self.layer_norm = nn.LayerNorm(options.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, of the shape of x [B, T, d_model]."""
        if self.pre_lnorm:
            return x + self.CoreNet(self.layer_norm(x))
        return self.layer_norm(x + self.CoreNet(x))
