"""Small conversations, and a small model, for the tests of fine-tuning, reward models and ReMax."""

import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase

import llm.config  # noqa: F401 (registers the schemas)
from llm import pretrained
from llm.config.finetune import FinetuneConfig
from repro.text.config import TokenizerConfig
from repro.train.cli import CONFIGS

MODEL = [
    "model.hidden_size=16", "model.intermediate_size=32", "model.num_hidden_layers=2",
    "model.num_attention_heads=2", "model.num_key_value_heads=1", "tokenizer=bytes",
]  # fmt: skip
SMALL = [
    *MODEL, "run.name=x", "data.root=pairs", "data.sequence_length=32", "batch_size=8", "epochs=2",
    "optimizer.lr=0.02", "schedule=constant", "schedule.warmup_epochs=0",
]  # fmt: skip
WORDS = ("red", "green", "blue", "black")


def pairs(number: int) -> list[dict[str, Any]]:
    """Questions whose answer is their only word, and an answer that is another word."""
    rows = []
    for i in range(number):
        word, other = WORDS[i % 4], WORDS[(i + 1 + i // 4 % 3) % 4]
        answers = {"completion": word, "chosen": word, "rejected": other}
        rows.append({"prompt": "say " * (1 + i % 3) + word + ":", **answers})
    return rows


def write(path: Path, rows: list[Any]) -> Path:
    """Write rows as lines of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_pairs(number: int = 32) -> None:
    """Write the folder `pairs`, with validation rows."""
    write(Path("pairs/train.jsonl"), pairs(number))
    write(Path("pairs/validation.jsonl"), pairs(12))


def configured(primary: str, *overrides: str) -> Any:
    """Return the configuration of a command line."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_object(compose(primary, list(overrides)))


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer whose tokens are bytes."""
    return pretrained.tokenizer_of(FinetuneConfig(tokenizer=TokenizerConfig("bytes")), list)


def bpe_tokenizer(texts: list[str], size: int = 300) -> PreTrainedTokenizerBase:
    """Return one of byte pairs of texts."""
    return pretrained.tokenizer_of(
        FinetuneConfig(tokenizer=TokenizerConfig("bpe", vocab_size=size)), lambda: texts
    )
