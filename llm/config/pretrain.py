"""Configuration of llm/pretrain.py."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore

from repro.errors import UserError
from repro.text.config import TEXTS, TextConfig, TokenizerConfig
from repro.train.config import TrainConfig, at_least


@dataclass
class SequencesConfig(TextConfig):
    """A text, and the sequences it is cut into: its documents one after another, without gaps."""

    name: str = "python_source"  # one of TEXTS, which docs/text.md describes
    sequence_length: int = 256  # tokens predicted in a sequence
    tokens: int | None = None  # number of first tokens to train on; null: all

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        at_least(1, "data.", self, "sequence_length")
        if self.tokens is not None and self.tokens < self.sequence_length:
            length = self.sequence_length
            raise UserError(f"data.tokens={self.tokens}: must be at least data.sequence_length={length}")


@dataclass
class SamplingConfig:
    """How text is sampled, for the summary and for HumanEval."""

    temperature: float = 0.8  # 0: always the most likely token
    top_p: float = 0.95  # sample among the most likely tokens that together have this probability
    max_new_tokens: int = 512  # of a continuation
    samples: int = 200  # of each problem of HumanEval

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        at_least(0, "sampling.", self, "temperature")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampling.top_p={self.top_p}: must lie in (0, 1]")
        at_least(1, "sampling.", self, "max_new_tokens", "samples")


@dataclass
class LlmConfig(TrainConfig):
    """All settings of llm/pretrain.py."""

    options: ClassVar = {"model": ("gpt2_*", "llama*", "moe_*"), "data": TEXTS}
    model: dict[str, Any] = field(default_factory=dict)  # transformers' keys, see llm/models.py
    data: SequencesConfig = field(default_factory=SequencesConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    gradient_checkpointing: bool = False  # recompute activations in the backward pass, to save memory
    eval_batches: int | None = None  # batches of the validation text to use; null: all
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        self.data.check()
        self.tokenizer.check()
        self.sampling.check()
        at_least(1, "", self, "eval_batches")


ConfigStore.instance().store(name="llm_schema", node=LlmConfig)
