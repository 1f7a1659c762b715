"""Configuration of llm/reward.py."""

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore

from llm.config.finetune import FinetuneConfig


@dataclass
class RewardConfig(FinetuneConfig):
    """Everything llm/reward.py can be told: what llm/finetune.py can."""


ConfigStore.instance().store(name="reward_schema", node=RewardConfig)
