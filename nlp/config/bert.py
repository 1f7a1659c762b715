"""Configuration of nlp/pretrain_bert.py, and of the encoder that nlp/finetune_glue.py starts from."""

from dataclasses import dataclass

from repro.config import one_of
from repro.errors import UserError


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
    type_vocab_size: int = (
        0  # segments that are told apart; 0: without such an embedding, as fairseq's RoBERTa
    )
    layer_norm_eps: float = 1.0e-5
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02  # standard deviation of all weights at the start; biases are 0
    next_sentence: bool = (
        False  # bert only: pre-train also to tell whether the second segment follows the first
    )

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
