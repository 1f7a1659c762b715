"""The schema of each entry point's configuration; importing this package registers them with Hydra."""

from llm.config import pretrain  # noqa: F401
