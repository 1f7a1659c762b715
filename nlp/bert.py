"""transformers' BERT and RoBERTa: for masked words, and with a head on the first token for sentences.

Parameters have transformers' names, so weights can be exchanged. They are initialised as in BERT and in
fairseq's RoBERTa: normal with a standard deviation of 0.02; biases and the padding token's rows are 0. (So is
a sentence head, where fairseq has torch's default: uniform with a deviation of 0.021, biases included.)
"""

from dataclasses import dataclass
from typing import Any

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
from repro.text.tokenizers import Tokenizer


@dataclass
class Untrained:
    """A placeholder for a tokenizer: its size, and the special tokens of fairseq."""

    vocab_size: int
    pad: int | None = 1
    bos: int | None = 0
    eos: int | None = 2


class NoTokenTypes(nn.Module):
    """Replaces transformers' embedding of segments in a model that has none."""

    def forward(self, token_types: Tensor) -> float:
        """Return 0, which is added to the embeddings."""
        return 0.0


class AtPlaces:
    """A forward pass for transformers' models that runs the head only at some places, as in fairseq."""

    base_model: Any

    def forward(
        self, ids: Tensor, mask: Tensor | None, places: Tensor, token_types: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the scores of words [batch, n, vocabulary], and those of pairs [batch, 2] or None.

        Args:
            ids: tokens [batch, length].
            mask: see `attention`.
            places: of the hidden words [batch, n].
            token_types: the segment of each token [batch, length]; None: all are 0.
        """
        output = self.base_model(ids, attention_mask=mask, token_type_ids=token_types)
        hidden = output.last_hidden_state
        picked = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.heads(picked, output.pooler_output)

    def heads(self, hidden: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the same for hidden states [batch, n, width] and the pooled first token [batch, width]."""
        raise NotImplementedError


class RobertaWords(AtPlaces, RobertaForMaskedLM):
    """RoBERTa that predicts hidden words."""

    def heads(self, hidden: Tensor, pooled: Tensor | None) -> tuple[Tensor, None]:
        return self.lm_head(hidden), None


class BertWords(AtPlaces, BertForMaskedLM):
    """BERT that predicts hidden words."""

    def heads(self, hidden: Tensor, pooled: Tensor | None) -> tuple[Tensor, None]:
        return self.cls(hidden), None


class BertWordsAndSentences(AtPlaces, BertForPreTraining):
    """BERT that predicts hidden words, and whether the second segment follows the first."""

    def heads(self, hidden: Tensor, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.cls(hidden, pooled)


def attention(attention_mask: Tensor) -> Tensor | None:
    """Expand an attention mask [batch, length], False at padding, to [batch, 1, length, length] for a model.

    Return None for a mask [batch, 0], which means that nothing is padded. Given [batch, length], transformers
    would inspect the values to find that out, and every step would wait for the device.
    """
    if not attention_mask.shape[1]:
        return None
    return attention_mask[:, None, None, :].expand(-1, 1, attention_mask.shape[1], -1)


def build_masked_lm(config: EncoderConfig, tokenizer: Tokenizer | Untrained) -> nn.Module:
    """Return a model with the forward pass of AtPlaces; its output weights are tied to the embedding.

    Raises:
        UserError: it does not fit the tokenizer.
    """
    words = BertWordsAndSentences if config.next_sentence else BertWords
    kind = RobertaWords if config.name == "roberta" else words
    return _finished(kind(_settings(config, tokenizer)), config)


def build_classifier(
    config: EncoderConfig, num_labels: int, tokenizer: Tokenizer | Untrained, dropout: float | None = None
) -> nn.Module:
    """Return transformers' model with a head on the first token, which for RoBERTa is fairseq's as well.

    Its forward pass takes (ids, attention_mask=attention(mask), token_type_ids=...); its `.logits` are
    [batch, labels].

    Args:
        num_labels: 1 for regression.
        dropout: before the head's layers; None: model.hidden_dropout_prob.

    Raises:
        UserError: it does not fit the tokenizer.
    """
    settings = _settings(config, tokenizer, num_labels=num_labels, classifier_dropout=dropout)
    kind = RobertaForSequenceClassification if config.name == "roberta" else BertForSequenceClassification
    return _finished(kind(settings), config)


def in_transformers(model: Any) -> Any:
    """Return transformers' own model with the weights of one from `build_masked_lm`.

    If that has no embedding of segments, the result has one of zeros, which is equivalent.
    """
    kind = next(base for base in type(model).__mro__ if base.__module__.startswith("transformers."))
    plain = kind(model.config)
    missing, _ = plain.load_state_dict(model.state_dict(), strict=False)
    if missing:
        nn.init.zeros_(plain.base_model.embeddings.token_type_embeddings.weight)
    return plain.eval()


def longest(config: EncoderConfig, tokenizer: Tokenizer | Untrained) -> int:
    """Return the number of tokens in the longest sequence that has positions."""
    used = 0 if config.name == "bert" else int(tokenizer.pad or 0) + 1
    return config.max_position_embeddings - used


def _settings(config: EncoderConfig, tokenizer: Tokenizer | Untrained, **more: Any) -> Any:
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
