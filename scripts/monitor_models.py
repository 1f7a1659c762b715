"""Two small transformers for trying things out in seconds: a causal backbone and a language model on it.

Names and sizes are those of the test models of NJUxlj/adam-optimizer-pytorch, whose layers have neither
attention nor positions, and whose loss is on unshifted labels that include the padding. Here they have what a
decoder needs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100  # a label that does not count


@dataclass
class TestModelConfig:
    """Sizes. The vocabulary has room for bytes (0 to 255) and some special tokens."""

    vocab_size: int = 300
    hidden_size: int = 768
    layers: int = 2
    heads: int = 12
    max_length: int = 512
    dropout: float = 0.1
    init_std: float = 0.02


class TestModelLayer(nn.Module):
    """Causal self-attention and a feed-forward net of four times the width, each with a norm before it."""

    def __init__(self, config: TestModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ffn_norm = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """x is [batch, length, width]; allowed [batch, 1, length, length] says who may look at whom."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [batch, heads, length, width / heads]
        rate = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=rate)
        x = x + F.dropout(self.out(seen.transpose(1, 2).flatten(2)), rate)
        return x + F.dropout(self.down(F.silu(self.up(self.ffn_norm(x)))), rate)


class TestModel(nn.Module):
    """Token and position embeddings, the layers, a last norm."""

    def __init__(self, config: TestModelConfig) -> None:
        super().__init__()
        if config.hidden_size % config.heads:
            raise ValueError(f"hidden_size={config.hidden_size}: must be divisible by heads={config.heads}")
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_length, config.hidden_size)
        self.blocks = nn.ModuleList([TestModelLayer(config) for _ in range(config.layers)])
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.apply(self._init)

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Hidden states [batch, length, width] of tokens [batch, length]; the mask is 0 for padding."""
        length = input_ids.shape[1]
        if length > self.config.max_length:
            raise ValueError(f"a sequence of {length} tokens: max_length is {self.config.max_length}")
        allowed = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
        if attention_mask is not None:  # padding sees itself, because a row that sees nothing has no softmax
            allowed = allowed & attention_mask[:, None, None, :].bool() | torch.eye(length).to(allowed)
        x = self.tokens(input_ids) + self.positions.weight[:length]
        for block in self.blocks:
            x = block(x, allowed)
        return self.norm(x)


class TestModelForCausalLM(nn.Module):
    """Predicts each token from those before it; the output layer is not tied to the embedding."""

    def __init__(self, config: TestModelConfig) -> None:
        super().__init__()
        self.model = TestModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        nn.init.normal_(self.lm_head.weight, std=config.init_std)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [batch, length, vocabulary], with labels (loss, logits).

        Labels are the tokens themselves, [batch, length]: the shift by one is made here. Those that are -100,
        or padding by the mask, do not count; the loss is the mean over the others, in nats.
        """
        logits = self.lm_head(self.model(input_ids, attention_mask))
        if labels is None:
            return logits
        if attention_mask is not None:
            labels = labels.masked_fill(attention_mask == 0, IGNORED)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        return loss, logits
