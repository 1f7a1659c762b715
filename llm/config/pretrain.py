"""Configuration of llm/pretrain.py."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from repro.errors import UserError
from repro.text.config import TextConfig, TokenizerConfig
from repro.train.config import TrainConfig


@dataclass
class SequencesConfig(TextConfig):
    """A text, and the sequences it is cut into: its documents one after the other, without gap."""

    name: str = "python_source"
    sequence_length: int = 256  # tokens that a sequence predicts
    tokens: int | None = None  # train on the first so many of the text; null: on all

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        if self.sequence_length < 1:
            raise UserError(f"data.sequence_length={self.sequence_length}: must be at least 1")
        if self.tokens is not None and self.tokens < self.sequence_length:
            raise UserError(
                f"data.tokens={self.tokens}: are less than data.sequence_length={self.sequence_length}"
            )


@dataclass
class SamplingConfig:
    """How text is drawn from the model: what the summary shows, and what HumanEval is to be scored with."""

    temperature: float = 0.8  # 0: the likeliest token each time
    top_p: float = 0.95  # among the likeliest tokens that together have this probability
    max_new_tokens: int = 512
    samples: int = 200  # of each of HumanEval's problems

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        if self.temperature < 0:
            raise UserError(f"sampling.temperature={self.temperature}: must be at least 0")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p={self.top_p}: must lie above 0, and at 1 at most")
        for key in ("max_new_tokens", "samples"):
            if getattr(self, key) < 1:
                raise UserError(f"sampling.{key}={getattr(self, key)}: must be at least 1")


@dataclass
class LlmConfig(TrainConfig):
    """Everything llm/pretrain.py can be told."""

    model: dict[str, Any] = field(default_factory=dict)  # in the words of transformers, see llm/models.py
    data: SequencesConfig = field(default_factory=SequencesConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    gradient_checkpointing: bool = False  # compute activations again in the backward pass, to save memory
    eval_batches: int | None = None  # of the validation text, of batch_size sequences; null: all of it
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        self.data.check()
        self.tokenizer.check()
        self.sampling.check()
        if self.eval_batches is not None and self.eval_batches < 1:
            raise UserError(f"eval_batches={self.eval_batches}: must be at least 1, or null for all")


ConfigStore.instance().store(name="llm_schema", node=LlmConfig)
