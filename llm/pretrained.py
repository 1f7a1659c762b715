"""The starting point of fine-tuning: a tokenizer and a model, with adapters or without."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate.utils import find_tied_parameters
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
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
    """Return the tokenizer of model.checkpoint, or that of the configuration, made from `texts`.

    Raises:
        UserError: there is none.
    """
    checkpoint = config.model.get("checkpoint")
    if checkpoint is not None:
        return models.read_tokenizer(checkpoint)
    return for_transformers(tokenizers.build(config.tokenizer, lambda: [texts()]))


def padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the padding token, if possible one that does not end texts."""
    known = [tokenizer.pad_token_id, tokenizer.unk_token_id]
    other = [token for token in known if token is not None and token != tokenizer.eos_token_id]
    return int(next(iter([*other, tokenizer.eos_token_id or 0])))


def language_model(config: FinetuneConfig, vocab_size: int | None) -> PreTrainedModel:
    """Return the initial model, in training mode.

    Args:
        vocab_size: the tokenizer's, for a model without a checkpoint.
    """
    checkpoint = config.model.get("checkpoint")
    if checkpoint is None:
        return models.build(config.model, vocab_size, config.gradient_checkpointing).train()
    logging.disable_progress_bar()
    made = models.load(checkpoint)
    return models.prepared(made, gradient_checkpointing=config.gradient_checkpointing).train()


def reward_model(config: FinetuneConfig, vocab_size: int | None, pad: int) -> PreTrainedModel:
    """Return a model, in training mode, that scores a sequence at its last token by a new head.

    Args:
        vocab_size: see `language_model`.
        pad: the padding token.
    """
    checkpoint = config.model.get("checkpoint")
    if checkpoint is not None:
        made = read_scorer(checkpoint, pad)
    else:
        settings = models.settings(config.model, vocab_size)
        settings.num_labels, settings.pad_token_id = 1, pad
        options = dict(attn_implementation="sdpa", dtype=torch.float32)
        made = AutoModelForSequenceClassification.from_config(settings, **options)
    return models.prepared(made, gradient_checkpointing=config.gradient_checkpointing).train()


def read_scorer(checkpoint: str, pad: int | None = None) -> PreTrainedModel:
    """Return the reward model of a checkpoint, or its language model with a new head.

    Raises:
        UserError: it cannot be read, or is not such a model.
    """
    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report that the head is new
    place, options = models.place_of(checkpoint), {} if pad is None else {"pad_token_id": pad}
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            place, num_labels=1, dtype=torch.float32, attn_implementation="sdpa", **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"cannot load a model that scores text from {checkpoint}: {reason}") from error
    finally:
        logging.set_verbosity(before)


def adapted(model: PreTrainedModel, lora: LoraConfig, kind: str) -> nn.Module:
    """Return the model, or with lora.rank the model with frozen weights and adapters to train.

    Args:
        kind: of the model, as peft names it: CAUSAL_LM or SEQ_CLS (whose head is also trained).
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
        with warnings.catch_warnings():  # peft uses a name that transformers deprecates
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            return peft.get_peft_model(model, adapter)
    except ValueError as error:
        raise UserError(f"lora.targets={lora.targets}: {' '.join(str(error).split())[:300]}") from error


def bare(model: nn.Module) -> PreTrainedModel:
    """Return transformers' model without the wrappers of peft and the training loop."""
    inner: Any = getattr(model, "_orig_mod", model)  # of torch.compile
    inner = inner.module if isinstance(inner, nn.parallel.DistributedDataParallel) else inner
    return inner.get_base_model() if isinstance(inner, peft.PeftModel) else inner


def export(model: Any, tokenizer: PreTrainedTokenizerBase, run: Path) -> None:
    """Write the best weights of a run, adapters merged, for transformers, and any adapters for peft.

    Args:
        model: a newly built model of the run, which gets the weights.
    """
    logging.disable_progress_bar()
    result = model.load_state_dict(read_weights(run)[0], strict=False)
    lacking = set(result.missing_keys).difference(*find_tied_parameters(model))
    if lacking or result.unexpected_keys:
        raise UserError(
            f"{run}: its weights are of another model: {sorted(lacking)[:1]}{result.unexpected_keys[:1]}"
        )
    if isinstance(model, peft.PeftModel):
        model.save_pretrained(str(run / ADAPTER))
        model = model.merge_and_unload()
    for part in (model, tokenizer):
        part.save_pretrained(run / models.EXPORT)
