"""Configuration of llm/remax.py."""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore

from llm.config.finetune import FinetuneConfig
from repro.errors import UserError
from repro.train.config import at_least, one_of

RULES = ("overlap", "parses")


@dataclass
class ScoreConfig:
    """The reward of a completion."""

    name: str = "rule"  # rule | model
    rule: str = "overlap"  # with name=rule: overlap | parses, see llm/rewards.py
    checkpoint: str | None = None  # with name=model: a run of llm/reward.py, or a classifier of transformers
    clip: float | None = None  # with name=model: scores are clipped to [-clip, clip]

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
    """All settings of llm/remax.py."""

    reward: ScoreConfig = field(default_factory=ScoreConfig)
    beta: float = 0.05  # weight of the divergence from the initial policy
    temperature: float = 1.0  # of the policy, in sampling and in likelihoods
    completion_length: int = 32  # maximum tokens; a prompt has the rest of data.sequence_length
    baseline: bool = True  # subtract the greedy completion's reward; false: REINFORCE

    def check(self) -> None:
        """Raise UserError for a value that cannot work, naming it."""
        super().check()
        self.reward.check()
        at_least(0, "", self, "beta")
        if not self.temperature > 0:
            raise UserError(f"temperature={self.temperature}: must be above 0")
        if not 1 <= self.completion_length < self.data.sequence_length:
            raise UserError(
                f"completion_length={self.completion_length}: must be at least 1, and below "
                f"data.sequence_length={self.data.sequence_length}, to leave room for a prompt"
            )


ConfigStore.instance().store(name="remax_schema", node=RemaxConfig)
