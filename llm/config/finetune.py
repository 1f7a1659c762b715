"""Configuration of llm/finetune.py and llm/reward.py; llm/remax.py extends it."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore

from repro.errors import UserError
from repro.text.config import TokenizerConfig
from repro.train.config import TrainConfig, at_least


@dataclass
class ConversationsConfig:
    """Questions with answers, and how many of them are used."""

    # .jsonl, .json or .parquet, a folder of them, or a name on the Hugging Face hub; null: Python's functions
    root: str | None = None
    dataset_config: str | None = None  # configuration of a data set on the hub, if it has several
    train_split: str = "train"  # name of the training split
    valid_split: str = "validation"  # if missing, valid_share of the training rows
    valid_share: float = 0.01  # see valid_split
    train_rows: int | None = None  # number of first rows to use; null: all
    valid_rows: int | None = 1000  # the same, for validation
    sequence_length: int = 256  # maximum tokens of question and answer, which are cut at the end

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        if not 0 < self.valid_share < 1:
            raise UserError(f"data.valid_share={self.valid_share}: must lie between 0 and 1")
        at_least(2, "data.", self, "sequence_length")
        at_least(1, "data.", self, "train_rows", "valid_rows")


@dataclass
class LoraConfig:
    """Low-rank adapters on frozen weights (LoRA, arXiv 2106.09685), made by peft."""

    rank: int | None = None  # null: no adapters; all weights are trained
    alpha: float = 16.0  # the adapters' output is multiplied by alpha / rank
    dropout: float = 0.0  # probability, of the adapters' inputs
    targets: list[str] | None = None  # names of linear layers; null: all except the output layer

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        at_least(1, "lora.", self, "rank")
        if not self.alpha > 0:
            raise UserError(f"lora.alpha={self.alpha}: must be above 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout={self.dropout}: is a probability below 1")


@dataclass
class FinetuneConfig(TrainConfig):
    """All settings of llm/finetune.py and llm/reward.py."""

    options: ClassVar = {"model": ("gpt2_*", "llama*", "moe_*")}
    # transformers' keys; `checkpoint` (a run, a folder of transformers, a name on the hub) has a tokenizer
    model: dict[str, Any] = field(default_factory=dict)
    gradient_checkpointing: bool = False  # recompute activations in the backward pass, to save memory
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: ConversationsConfig = field(default_factory=ConversationsConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)  # if there is no checkpoint

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        self.lora.check()
        self.data.check()
        self.tokenizer.check()
        if self.fsdp and self.lora.rank is not None:
            raise UserError("fsdp=true: does not support lora.rank, whose adapters need little memory")
        if self.row is not None and self.row.after is not None and self.model.get("checkpoint") is None:
            raise UserError(
                f"model.checkpoint is not set: {self.row.name} starts from a run of llm/finetune.py; name it"
            )


for _name in ("finetune_schema", "reward_schema"):
    ConfigStore.instance().store(name=_name, node=FinetuneConfig)
