"""Configuration of llm/remax.py."""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from llm.config.finetune import FinetuneConfig
from repro.errors import UserError
from repro.train.config import one_of

RULES = ("overlap", "parses")


@dataclass
class ScoreConfig:
    """What a completion is worth."""

    name: str = "rule"  # rule | model
    rule: str = "overlap"  # of name=rule: overlap | parses, see llm/rewards.py
    checkpoint: str | None = None  # of name=model: a run of llm/reward.py, or a classifier of transformers
    clip: float | None = None  # of name=model: scores are kept between -clip and clip

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        one_of("reward.name", self.name, ("rule", "model"))
        one_of("reward.rule", self.rule, RULES)
        if self.name == "model" and self.checkpoint is None:
            raise UserError(
                "reward.checkpoint is not set: reward.name=model needs a run of llm/reward.py; "
                "reward.name=rule needs none"
            )
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"reward.clip={self.clip}: must be above 0, or null for no bound")


@dataclass
class RemaxConfig(FinetuneConfig):
    """Everything llm/remax.py can be told."""

    reward: ScoreConfig = field(default_factory=ScoreConfig)
    beta: float = 0.05  # weight of the divergence from the policy that training began with
    temperature: float = 1.0  # of the policy: completions are drawn, and likelihoods taken, with it
    completion_length: int = 32  # tokens at most; a prompt has the rest of data.sequence_length
    baseline: bool = True  # subtract the greedy completion's reward; false: REINFORCE

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        self.reward.check()
        if self.beta < 0:
            raise UserError(f"beta={self.beta}: must be at least 0")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature}: must be above 0")
        if not 1 <= self.completion_length < self.data.sequence_length:
            raise UserError(
                f"completion_length={self.completion_length}: must be at least 1, and below "
                f"data.sequence_length={self.data.sequence_length}, as a prompt needs room, too"
            )


ConfigStore.instance().store(name="remax_schema", node=RemaxConfig)
