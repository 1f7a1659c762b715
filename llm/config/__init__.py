"""The configuration schema of each entry point; importing this package registers them with Hydra."""

from llm.config import finetune, pretrain, remax  # noqa: F401
