"""What fine-tuning starts from: a tokenizer and a model that go together, with adapters or without."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from llm import models
from llm.config.finetune import FinetuneConfig, LoraConfig
from llm.generate import for_transformers
from repro.errors import UserError
from repro.interop import read_weights
from repro.text import tokenizers

ADAPTER = "adapter"  # folder of a finished run in which its adapter is, as peft writes it


def tokenizer_of(config: FinetuneConfig, texts: Callable[[], list[str]]) -> PreTrainedTokenizerBase:
    """Return the tokenizer of model.checkpoint, or that of the configuration, made of `texts`.

    Raises:
        UserError: there is none.
    """
    checkpoint = config.model.get("checkpoint")
    if checkpoint is not None:
        return read_tokenizer(checkpoint)
    made = tokenizers.build(config.tokenizer, lambda: [texts()])
    return for_transformers(made)


def read_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a run's folder, a folder of transformers or a name on the hub."""
    place = place_of(checkpoint)
    for folder in (Path(place), Path(place) / "tokenizer"):
        if (folder / "tokenizer_config.json").exists():
            place = str(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"{checkpoint}: has no tokenizer that transformers can read ({reason[:150]})"
        ) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def place_of(checkpoint: str) -> str:
    """Return where transformers finds a model: of a finished run the folder with its best weights."""
    path = Path(checkpoint).expanduser()
    if not path.exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", checkpoint):
        raise UserError(f"{checkpoint}: no such folder; name a run, or a model of transformers")
    exported = path / models.EXPORT
    return str(exported if exported.is_dir() else path) if path.exists() else checkpoint


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that fills rows up, if possible none that ends texts."""
    known = [tokenizer.pad_token_id, tokenizer.unk_token_id]
    other = [token for token in known if token is not None and token != tokenizer.eos_token_id]
    return int(next(iter([*other, tokenizer.eos_token_id or 0])))


def language_model(config: FinetuneConfig, vocab_size: int | None) -> PreTrainedModel:
    """Return the model that training begins with, in training mode.

    Args:
        vocab_size: the tokenizer's, for a model that is not of a checkpoint.
    """
    checkpoint = config.model.get("checkpoint")
    if checkpoint is None:
        return models.build(config.model, vocab_size, config.gradient_checkpointing).train()
    logging.disable_progress_bar()
    return models.prepared(
        models.load(checkpoint), gradient_checkpointing=config.gradient_checkpointing
    ).train()


def reward_model(config: FinetuneConfig, vocab_size: int | None, pad: int) -> PreTrainedModel:
    """Return a model that gives a sequence a number, at its last token, with a new head.

    Args:
        vocab_size: see `language_model`.
        pad: the token that fills rows up.
    """
    checkpoint = config.model.get("checkpoint")
    if checkpoint is not None:
        made = read_scorer(checkpoint, pad)
    else:
        made = new_scorer(config.model, vocab_size, pad)
    return models.prepared(made, gradient_checkpointing=config.gradient_checkpointing).train()


def new_scorer(model: dict[str, Any], vocab_size: int | None, pad: int) -> PreTrainedModel:
    """Return a model that gives a sequence a number, with its initial weights; see llm.models.build."""
    settings = models.settings(model, vocab_size)
    settings.num_labels, settings.pad_token_id = 1, pad
    made = AutoModelForSequenceClassification.from_config(
        settings, attn_implementation="sdpa", dtype=torch.float32
    )
    assert isinstance(made, PreTrainedModel)
    return made


def read_scorer(checkpoint: str, pad: int | None = None) -> PreTrainedModel:
    """Return the reward model, or a language model's body with a new head, of a checkpoint.

    Raises:
        UserError: it cannot be read, or is no such model.
    """
    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it reports that the head is new
    options = {} if pad is None else {"pad_token_id": pad}
    try:
        made = AutoModelForSequenceClassification.from_pretrained(
            place_of(checkpoint), num_labels=1, dtype=torch.float32, attn_implementation="sdpa", **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"cannot load a model that scores text from {checkpoint}: {reason}") from error
    finally:
        logging.set_verbosity(before)
    assert isinstance(made, PreTrainedModel)
    return made


def adapted(model: PreTrainedModel, lora: LoraConfig, kind: str) -> nn.Module:
    """Return the model, with a lora.rank its weights frozen, and adapters to train.

    Args:
        kind: of model in peft's words, CAUSAL_LM or SEQ_CLS (whose head is trained, too).
    """
    if lora.rank is None:
        return model
    adapter = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float serves
        lora_dropout=lora.dropout,
        target_modules=lora.targets or "all-linear",
        task_type=kind,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        with warnings.catch_warnings():  # peft asks by a name that transformers will give up
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            return peft.get_peft_model(model, adapter)
    except ValueError as error:
        raise UserError(f"lora.targets={lora.targets}: {' '.join(str(error).split())[:300]}") from error


def bare(model: nn.Module) -> PreTrainedModel:
    """Return transformers' model inside what peft and the loop wrap around it."""
    inner: Any = getattr(model, "_orig_mod", model)  # of torch.compile
    inner = inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else inner
    inner = inner.get_base_model() if isinstance(inner, peft.PeftModel) else inner
    assert isinstance(inner, PreTrainedModel)
    return inner


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Have the model compute as without its adapters in this block."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def export(model: nn.Module, tokenizer: PreTrainedTokenizerBase, run: Path) -> None:
    """Write the best weights of a run, adapters merged, for transformers, and adapters for peft.

    Args:
        model: a new one of the run's.
    """
    logging.disable_progress_bar()
    weights = read_weights(run)[0]
    result = model.load_state_dict(weights, strict=False)
    lacking = set(result.missing_keys) - tied(model)
    if lacking or result.unexpected_keys:
        raise UserError(
            f"{run}: its weights are of another model: {sorted(lacking)[:1]}{result.unexpected_keys[:1]}"
        )
    if isinstance(model, peft.PeftModel):
        model.save_pretrained(str(run / ADAPTER))
        model = model.merge_and_unload()
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(run / models.EXPORT)
    tokenizer.save_pretrained(run / models.EXPORT)


def tied(model: nn.Module) -> set[str]:
    """Return the names of all parameters that are there under another name, too."""
    first: dict[int, str] = {}
    names = [(name, id(p)) for name, p in model.named_parameters(remove_duplicate=False)]
    doubles = {number for name, number in names if first.setdefault(number, name) != name}
    return {name for name, number in names if number in doubles}
