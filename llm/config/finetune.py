"""Configuration of llm/finetune.py, and of what llm/reward.py and llm/remax.py share with it."""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from repro.errors import UserError
from repro.text.config import TokenizerConfig
from repro.train.config import TrainConfig


@dataclass
class ConversationsConfig:
    """Questions with answers, and how many tokens of them are used."""

    # .jsonl, .json or .parquet, a folder of them, or a name on the Hugging Face hub; null: Python's functions
    root: str | None = None
    dataset_config: str | None = None  # of a data set on the hub: its configuration, if it has several
    train_split: str = "train"
    valid_split: str = "validation"  # where there is none, valid_share of the training rows
    valid_share: float = 0.01
    train_rows: int | None = None  # only the first; null: all
    valid_rows: int | None = 1000
    sequence_length: int = 256  # tokens of question and answer at most; what is longer is cut at its end

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        if not 0 < self.valid_share < 1:
            raise UserError(f"data.valid_share={self.valid_share}: must lie between 0 and 1")
        if self.sequence_length < 2:
            raise UserError(f"data.sequence_length={self.sequence_length}: must be at least 2")
        for key in ("train_rows", "valid_rows"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise UserError(f"data.{key}={getattr(self, key)}: must be at least 1, or null for all")


@dataclass
class LoraConfig:
    """Low-rank adapters on frozen weights (LoRA, arXiv 2106.09685), made by peft."""

    rank: int | None = None  # null: no adapters, all weights are trained
    alpha: float = 16.0  # what the adapters add is multiplied by alpha / rank
    dropout: float = 0.0  # probability, of the adapters' inputs
    targets: list[str] | None = None  # names of linear layers; null: all of them but the output's

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        if self.rank is not None and self.rank < 1:
            raise UserError(f"lora.rank={self.rank}: must be at least 1, or null to train all weights")
        if not self.alpha > 0:
            raise UserError(f"lora.alpha={self.alpha}: must be above 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout={self.dropout}: is a probability below 1")


@dataclass
class FinetuneConfig(TrainConfig):
    """Everything llm/finetune.py can be told."""

    # In the words of transformers, see llm/models.py. `checkpoint` (a run of llm/pretrain.py or of
    # llm/finetune.py, a folder of transformers, a name on the hub) brings its own, with its tokenizer.
    model: dict[str, Any] = field(default_factory=dict)
    gradient_checkpointing: bool = False  # compute activations again in the backward pass, to save memory
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: ConversationsConfig = field(default_factory=ConversationsConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)  # where no checkpoint brings its own

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        self.lora.check()
        self.data.check()
        self.tokenizer.check()
        if self.fsdp and self.lora.rank is not None:
            raise UserError(
                "fsdp=true: takes no lora.rank, as adapters need little memory; leave one of them out"
            )
        if self.row is not None and self.row.after is not None and self.model.get("checkpoint") is None:
            raise UserError(
                f"model.checkpoint is not set: {self.row.name} starts from a run of llm/finetune.py; name it"
            )


ConfigStore.instance().store(name="finetune_schema", node=FinetuneConfig)
