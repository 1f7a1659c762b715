"""Configuration of nlp/train_lstm.py."""

from dataclasses import dataclass, field
from typing import ClassVar

from hydra.core.config_store import ConfigStore

from repro.errors import UserError
from repro.text.config import TEXTS, TextConfig, TokenizerConfig
from repro.train.config import TrainConfig, at_least


@dataclass
class LSTMConfig:
    """The model of nlp/lstm.py. The keys are named as in the code of AWD-LSTM."""

    emsize: int = 400  # width of the embedding
    nhid: int = 1150  # width of all layers, except the last if tied, which has the embedding's
    nlayers: int = 3  # number of layers
    tied: bool = True  # share the embedding's weights with the softmax
    dropout: float = 0.4  # probability, of the last layer's output
    dropouth: float = 0.25  # between layers
    dropouti: float = 0.4  # of the embedded words
    dropoute: float = 0.1  # of whole words
    wdrop: float = 0.5  # of the recurrent weights
    alpha: float = 2.0  # weight of the squared activations in the loss (AR)
    beta: float = 1.0  # weight of their squared changes (TAR)


@dataclass
class StreamsConfig(TextConfig):
    """A text, and how it is cut; training has batch_size streams."""

    tgt_len: int = 70  # tokens of a segment, through which gradients flow back
    eval_batch_size: int = 10  # streams of the validation text
    test_batch_size: int = 1  # streams of the test text; with one, every word has its whole context

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        at_least(1, "data.", self, "tgt_len", "eval_batch_size", "test_batch_size")


@dataclass
class LSTMTrainConfig(TrainConfig):
    """All settings of nlp/train_lstm.py."""

    options: ClassVar = {"model": ("lstm_*",), "data": TEXTS}
    model: LSTMConfig = field(default_factory=LSTMConfig)
    data: StreamsConfig = field(default_factory=StreamsConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        self.data.check()
        self.tokenizer.check()
        at_least(1, "model.", self.model, "emsize", "nhid", "nlayers")
        at_least(0, "model.", self.model, "alpha", "beta")
        for key in ("dropout", "dropouth", "dropouti", "dropoute", "wdrop"):
            if not 0 <= getattr(self.model, key) < 1:
                raise UserError(f"model.{key}={getattr(self.model, key)}: is a probability below 1")
        if self.compile:
            raise UserError("compile=true: torch.compile does not support LSTMs; leave it out")


ConfigStore.instance().store(name="lstm_schema", node=LSTMTrainConfig)
