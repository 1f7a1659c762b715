"""Configuration of nlp/pretrain_bert.py, and of the encoder that nlp/finetune_glue.py starts from."""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from repro.errors import UserError
from repro.text.config import TextConfig, TokenizerConfig
from repro.train.config import TrainConfig, one_of

BLOCKS = ("complete", "complete_doc", "none")


@dataclass
class EncoderConfig:
    """A bidirectional transformer, in the words of transformers (RobertaConfig and BertConfig)."""

    name: str = "roberta"  # roberta | bert: which of transformers' two
    vocab_size: int | None = None  # null: as many as the tokenizer has
    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 512
    hidden_act: str = "gelu"
    max_position_embeddings: int = 514  # roberta counts on from its padding token: length + pad id + 1
    # segments that are told apart; 0: without such an embedding, as fairseq's RoBERTa
    type_vocab_size: int = 0
    layer_norm_eps: float = 1.0e-5
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02  # standard deviation of all weights at the start; biases are 0
    # bert only: pre-train also to tell whether the second segment follows the first
    next_sentence: bool = False

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        one_of("model.name", self.name, ("roberta", "bert"))
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, key) < 1:
                raise UserError(f"model.{key}={getattr(self, key)}: must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"model.num_attention_heads={self.num_attention_heads}: "
                f"must divide model.hidden_size={self.hidden_size}"
            )
        if self.type_vocab_size < 0:
            raise UserError(f"model.type_vocab_size={self.type_vocab_size}: must be at least 0")
        if self.next_sentence and (self.name != "bert" or self.type_vocab_size < 2):
            raise UserError("model.next_sentence=true: needs model.name=bert with model.type_vocab_size=2")


@dataclass
class SequencesConfig(TextConfig):
    """A text, the sequences it is cut into, and the tokens that are hidden in them."""

    # complete | complete_doc | none, as fairseq's sample_break_mode; see nlp/blocks.py
    block: str = "complete"
    block_size: int = 128  # tokens in a sequence at most, with <s> and </s>
    mask_prob: float = 0.15  # share of the tokens that are to be predicted
    leave_unmasked_prob: float = 0.1  # of these: they stay as they are
    random_token_prob: float = 0.1  # of these: they become any other
    mask_specials: bool = False  # predict <s> and </s>, too, as fairseq does
    train_sequences: int | None = None  # so many were published, to compare with
    valid_sequences: int | None = None

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        one_of("data.block", self.block, BLOCKS)
        if self.block_size < 8:
            raise UserError(f"data.block_size={self.block_size}: must be at least 8")
        if not 0 < self.mask_prob < 1:
            raise UserError(f"data.mask_prob={self.mask_prob}: must lie between 0 and 1")
        leave, random = self.leave_unmasked_prob, self.random_token_prob
        if min(leave, random) < 0 or leave + random > 1:
            raise UserError(
                f"data.leave_unmasked_prob={leave}, data.random_token_prob={random}: must be parts of a whole"
            )


@dataclass
class BertConfig(TrainConfig):
    """Everything nlp/pretrain_bert.py can be told."""

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
            raise UserError(
                "data.block=none: model.next_sentence=true needs whole lines, as data.block=complete_doc has"
            )


ConfigStore.instance().store(name="bert_schema", node=BertConfig)
