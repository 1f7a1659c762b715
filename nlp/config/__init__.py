"""The configuration schema of each entry point; importing this package registers them with Hydra."""

from nlp.config import bert, glue, lstm, transformer_xl  # noqa: F401
