"""Configuration of nlp/train_lstm.py."""

from dataclasses import dataclass


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
