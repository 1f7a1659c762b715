"""Configuration of nlp/train_lstm.py."""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from repro.errors import UserError
from repro.text.config import TextConfig, TokenizerConfig
from repro.train.config import TrainConfig


@dataclass
class LSTMConfig:
    """The model of nlp/lstm.py. Its names are those of AWD-LSTM's own code."""

    emsize: int = 400  # width of the embedding
    nhid: int = 1150  # width of all layers but the last, which has the embedding's where it is tied
    nlayers: int = 3
    tied: bool = True  # the softmax has the embedding's weights
    dropout: float = 0.4  # probability, of the last layer's output
    dropouth: float = 0.25  # between layers
    dropouti: float = 0.4  # of the embedded words
    dropoute: float = 0.1  # of whole words
    wdrop: float = 0.5  # of the recurrent weights
    alpha: float = 2.0  # weight of the activations' squares in the loss (AR)
    beta: float = 1.0  # and of the squares of their changes (TAR)


@dataclass
class StreamsConfig(TextConfig):
    """A text and how it is cut: batch_size streams in training, and these."""

    tgt_len: int = 70  # tokens of a segment, through which gradients flow back
    eval_batch_size: int = 10  # streams of the validation text
    test_batch_size: int = 1  # of the test text; with one every word has all that came before it

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        for key in ("tgt_len", "eval_batch_size", "test_batch_size"):
            if getattr(self, key) < 1:
                raise UserError(f"data.{key}={getattr(self, key)}: must be at least 1")


@dataclass
class LSTMTrainConfig(TrainConfig):
    """Everything nlp/train_lstm.py can be told."""

    model: LSTMConfig = field(default_factory=LSTMConfig)
    data: StreamsConfig = field(default_factory=StreamsConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        self.data.check()
        self.tokenizer.check()
        for key in ("emsize", "nhid", "nlayers"):
            if getattr(self.model, key) < 1:
                raise UserError(f"model.{key}={getattr(self.model, key)}: must be at least 1")
        for key in ("dropout", "dropouth", "dropouti", "dropoute", "wdrop"):
            if not 0 <= getattr(self.model, key) < 1:
                raise UserError(f"model.{key}={getattr(self.model, key)}: is a probability below 1")
        for key in ("alpha", "beta"):
            if getattr(self.model, key) < 0:
                raise UserError(f"model.{key}={getattr(self.model, key)}: must be at least 0")
        if self.compile:
            raise UserError("compile=true: torch.compile does not look into LSTMs; leave it out")


ConfigStore.instance().store(name="lstm_schema", node=LSTMTrainConfig)
