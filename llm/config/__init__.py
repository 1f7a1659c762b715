"""The schema of each entry point's configuration; importing this package registers them with Hydra."""

from llm.config import finetune, remax, reward  # noqa: F401
