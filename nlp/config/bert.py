"""Configuration of nlp/pretrain_bert.py, and of the encoder that nlp/finetune_glue.py starts from."""

from dataclasses import dataclass, field
from typing import ClassVar

from hydra.core.config_store import ConfigStore

from repro.errors import UserError
from repro.text.config import TEXTS, TextConfig, TokenizerConfig
from repro.train.config import TrainConfig, at_least, one_of

BLOCKS = ("complete", "complete_doc", "none")


@dataclass
class EncoderConfig:
    """A bidirectional transformer, with the keys of transformers' RobertaConfig and BertConfig."""

    name: str = "roberta"  # roberta | bert: which of transformers' two
    vocab_size: int | None = None  # null: as many as the tokenizer has
    hidden_size: int = 128  # width
    num_hidden_layers: int = 2  # number of blocks
    num_attention_heads: int = 2  # of each block
    intermediate_size: int = 512  # width inside the feed-forward layers
    hidden_act: str = "gelu"  # activation between them
    max_position_embeddings: int = 514  # roberta counts on from its padding token: length + pad id + 1
    # number of segment types; 0: no embedding of segments, as in fairseq's RoBERTa
    type_vocab_size: int = 0
    layer_norm_eps: float = 1.0e-5  # added to the variance in layer norms
    hidden_dropout_prob: float = 0.1  # dropout of embeddings and blocks
    attention_probs_dropout_prob: float = 0.1  # dropout of attention weights
    initializer_range: float = 0.02  # standard deviation of the initial weights; biases are 0
    # bert only: also learn to tell whether the second segment follows the first
    next_sentence: bool = False

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        one_of("model.name", self.name, ("roberta", "bert"))
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        at_least(1, "model.", self, *sizes)
        at_least(0, "model.", self, "type_vocab_size")
        heads, width = self.num_attention_heads, self.hidden_size
        if width % heads:
            raise UserError(f"model.num_attention_heads={heads}: must divide model.hidden_size={width}")
        if self.next_sentence and (self.name != "bert" or self.type_vocab_size < 2):
            raise UserError("model.next_sentence=true: needs model.name=bert with model.type_vocab_size=2")


@dataclass
class SequencesConfig(TextConfig):
    """A text, how it is cut into sequences, and the tokens hidden in them."""

    # complete | complete_doc | none, as fairseq's sample_break_mode; see nlp/blocks.py
    block: str = "complete"
    block_size: int = 128  # maximum number of tokens in a sequence, with <s> and </s>
    mask_prob: float = 0.15  # share of the tokens to be predicted
    leave_unmasked_prob: float = 0.1  # share of these that stay unchanged
    random_token_prob: float = 0.1  # share of these that become a random token
    mask_specials: bool = False  # also predict <s> and </s>, as fairseq does
    train_sequences: int | None = None  # published number, to compare with
    valid_sequences: int | None = None  # the same, for validation

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        one_of("data.block", self.block, BLOCKS)
        at_least(8, "data.", self, "block_size")
        if not 0 < self.mask_prob < 1:
            raise UserError(f"data.mask_prob={self.mask_prob}: must lie between 0 and 1")
        leave, random = self.leave_unmasked_prob, self.random_token_prob
        if min(leave, random) < 0 or leave + random > 1:
            shares = f"data.leave_unmasked_prob={leave}, data.random_token_prob={random}"
            raise UserError(f"{shares}: must be shares of the hidden tokens, at most 1 in total")


@dataclass
class BertConfig(TrainConfig):
    """All settings of nlp/pretrain_bert.py."""

    options: ClassVar = {"model": ("bert_*", "roberta_*"), "data": TEXTS}
    model: EncoderConfig = field(default_factory=EncoderConfig)
    data: SequencesConfig = field(default_factory=SequencesConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        self.model.check()
        self.data.check()
        self.tokenizer.check()
        if self.model.next_sentence and self.data.block == "none":
            raise UserError("data.block=none: model.next_sentence=true needs complete_doc or complete")


ConfigStore.instance().store(name="bert_schema", node=BertConfig)
