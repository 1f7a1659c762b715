"""BERT and RoBERTa by transformers: for masked words, and with a head on the first token for sentences.

Names of parameters are those of transformers, so that weights go there and back. Initial weights are those of
BERT and of fairseq's RoBERTa: normal with a deviation of 0.02, biases and the padding token's rows 0. (Of a
sentence head, too, where fairseq has torch's default: uniform with a deviation of 0.021, biases as well.)
"""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

from nlp.config.bert import EncoderConfig
from repro.errors import UserError


class Vocabulary(Protocol):
    """What a model has to know of a tokenizer."""

    vocab_size: int
    pad: int | None
    bos: int | None
    eos: int | None


@dataclass
class Untrained:
    """Stands for a tokenizer where there is none yet: its size, and the special tokens of fairseq."""

    vocab_size: int
    pad: int | None = 1
    bos: int | None = 0
    eos: int | None = 2


class NoTokenTypes(nn.Module):
    """Stands where transformers adds an embedding of segments, for a model that has none."""

    def forward(self, token_types: Tensor) -> float:
        """Return what changes nothing."""
        return 0.0


class RobertaWords(RobertaForMaskedLM):
    """transformers' RobertaForMaskedLM with its head on some places alone, as in fairseq."""

    def forward(
        self, ids: Tensor, mask: Tensor | None, places: Tensor, token_types: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Return the scores of each token [batch, places, vocabulary]; see `encode` for the arguments."""
        return self.lm_head(picked(encode(self, ids, mask, token_types)[0], places)), None


class BertWords(BertForMaskedLM):
    """transformers' BertForMaskedLM in the same manner."""

    def forward(
        self, ids: Tensor, mask: Tensor | None, places: Tensor, token_types: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Return the scores of each token [batch, places, vocabulary]; see `encode` for the arguments."""
        return self.cls(picked(encode(self, ids, mask, token_types)[0], places)), None


class BertWordsAndSentences(BertForPreTraining):
    """transformers' BertForPreTraining in the same manner."""

    def forward(
        self, ids: Tensor, mask: Tensor | None, places: Tensor, token_types: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return those scores, and the two of a pair [batch, 2]: that it is one, and that it is not."""
        hidden, pooled = encode(self, ids, mask, token_types)
        scores: tuple[Tensor, Tensor] = self.cls(picked(hidden, places), pooled)
        return scores


def encode(model: Any, ids: Tensor, mask: Tensor | None, token_types: Tensor | None) -> tuple[Tensor, Any]:
    """Run a model's encoder; returns the hidden states [batch, length, width] and the pooled first, if any.

    Args:
        ids: tokens [batch, length].
        mask: see `attention`.
        token_types: the segment of each token [batch, length]; None: all are 0.
    """
    output = model.base_model(ids, attention_mask=mask, token_type_ids=token_types)
    return output.last_hidden_state, output.pooler_output


def picked(hidden: Tensor, places: Tensor) -> Tensor:
    """Return the hidden states [batch, places, width] at `places` [batch, places]."""
    return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))


def attention(attention_mask: Tensor) -> Tensor | None:
    """Expand an attention mask [batch, length], False at padding, to [batch, 1, length, length] for a model.

    None for a mask without columns, [batch, 0], which says that nothing is padded. Given [batch, length],
    transformers would look at the values to find that out, and every step would wait for the device.
    """
    if not attention_mask.shape[1]:
        return None
    return attention_mask[:, None, None, :].expand(-1, 1, attention_mask.shape[1], -1)


def build_masked_lm(config: EncoderConfig, tokenizer: Vocabulary) -> nn.Module:
    """Return a model with the forward pass of RobertaWords; its output's weights are the embedding's.

    Raises:
        UserError: it does not go together with the tokenizer.
    """
    if config.name == "roberta":
        return _finished(RobertaWords(_settings(config, tokenizer)), config)
    words = BertWordsAndSentences if config.next_sentence else BertWords
    return _finished(words(_settings(config, tokenizer)), config)


def build_classifier(
    config: EncoderConfig, num_labels: int, tokenizer: Vocabulary, dropout: float | None = None
) -> nn.Module:
    """Return transformers' model with a head on the first token, which for RoBERTa is fairseq's, too.

    Its forward pass takes (ids, attention_mask=attention(mask), token_type_ids=...); its `.logits` are
    [batch, labels].

    Args:
        num_labels: 1 for a regression.
        dropout: before the head's layers; None: model.hidden_dropout_prob.

    Raises:
        UserError: it does not go together with the tokenizer.
    """
    settings = _settings(config, tokenizer, num_labels=num_labels, classifier_dropout=dropout)
    kind = RobertaForSequenceClassification if config.name == "roberta" else BertForSequenceClassification
    return _finished(kind(settings), config)


def in_transformers(model: Any) -> Any:
    """Return transformers' own model with the weights of one of `build_masked_lm`, without its changes.

    Where there is no embedding of segments it has one of zeros, which is the same.
    """
    kind = next(base for base in type(model).__mro__ if base.__module__.startswith("transformers."))
    plain = kind(model.config)
    missing, _ = plain.load_state_dict(model.state_dict(), strict=False)
    if missing:
        nn.init.zeros_(plain.base_model.embeddings.token_type_embeddings.weight)
    return plain.eval()


def longest(config: EncoderConfig, tokenizer: Vocabulary) -> int:
    """Return the number of tokens in the longest sequence for which there are positions."""
    used = 0 if config.name == "bert" else int(tokenizer.pad or 0) + 1
    return config.max_position_embeddings - used


def _settings(config: EncoderConfig, tokenizer: Vocabulary, **more: Any) -> Any:
    config.check()
    size = config.vocab_size or tokenizer.vocab_size
    if size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size={size}: the tokenizer has {tokenizer.vocab_size} tokens; null takes as many"
        )
    kind: Any = RobertaConfig if config.name == "roberta" else BertConfig
    names = set(EncoderConfig.__dataclass_fields__) - {"name", "next_sentence"}
    settings = {name: getattr(config, name) for name in names}
    settings |= {"vocab_size": size, "type_vocab_size": max(config.type_vocab_size, 1)}
    ids = {f"{name}_token_id": getattr(tokenizer, name) for name in ("pad", "bos", "eos")}
    return kind(**settings, **ids, **more, attn_implementation="sdpa")


def _finished(model: Any, config: EncoderConfig) -> nn.Module:
    if not config.type_vocab_size:
        model.base_model.embeddings.token_type_embeddings = NoTokenTypes()
    return model
