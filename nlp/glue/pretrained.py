"""The starting point of fine-tuning: an encoder, and the tokenizer that it was trained with."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from nlp import bert
from nlp.config.bert import EncoderConfig
from nlp.config.glue import SCRATCH, ClassifierConfig, GlueConfig
from nlp.glue.encode import Coder, HuggingFaceCoder, PairCoder
from repro.errors import UserError
from repro.interop import read_weights
from repro.runs import read_config
from repro.text import tokenizers
from repro.train.checkpoint import first_difference

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")  # never taken from the checkpoint
# (model, tokens, attention_mask, token_type_ids), as in encode.Batch, to logits [batch, outputs]
Forward = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


@dataclass
class Start:
    """A tokenizer and a model that go together."""

    title: str  # of the model
    where: str  # its origin
    coder: Coder
    pad: int  # the padding token
    build: Callable[[int], nn.Module]  # takes the number of outputs
    forward: Forward
    save_tokenizer: Callable[[Path], object]


def begin(config: GlueConfig, lines: Callable[[], list[str]]) -> Start:
    """Return the tokenizer and model that model.checkpoint names.

    Args:
        lines: returns the training sentences, to make a tokenizer from if the checkpoint has none.

    Raises:
        UserError: the checkpoint does not exist, or does not fit the rest of the configuration.
    """
    checkpoint = config.model.checkpoint
    assert checkpoint is not None  # see GlueConfig.check
    path = Path(checkpoint).expanduser()
    if (path / "config.yaml").exists() and checkpoint != SCRATCH:
        if not (path / "tokenizer").is_dir():
            raise UserError(f"model.checkpoint={path}: has no tokenizer/ in it; {config.cure}")
        return ours(config, tokenizers.load(path / "tokenizer"), path)
    weights = path.is_file() or (path.is_dir() and not (path / "config.json").exists())
    if checkpoint == SCRATCH or weights:
        made = tokenizers.build(config.tokenizer, lambda: [lines()])
        return ours(config, made, None if checkpoint == SCRATCH else path)
    on_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", checkpoint) and not (
        "/" in checkpoint and path.parent.is_dir()
    )
    if path.exists() or on_hub:
        return _hugging_face(config, checkpoint, path.exists())
    raise UserError(f"model.checkpoint={checkpoint}: no such file or folder; {config.cure}")


def adopted(config: GlueConfig) -> ClassifierConfig:
    """Return the configuration of the model, with the encoder's shape from the run it starts from.

    Raises:
        UserError: the run is not of this recipe or of pre-training, or has another shape than the row.
    """
    model, path = config.model, Path(config.model.checkpoint or "").expanduser()
    if model.checkpoint == SCRATCH or not (path / "config.yaml").exists():
        return model
    there = read_config(path)
    names = [item.name for item in fields(EncoderConfig) if item.name not in DROPOUTS]
    start = there.get("model.checkpoint")
    if "model.hidden_size" not in there or (start not in (None, SCRATCH) and not _is_ours(str(start))):
        raise UserError(
            f"model.checkpoint={model.checkpoint}: is no run of nlp/pretrain_bert.py, and did not start "
            f"from one; {config.cure}"
        )
    shape = {name: there[f"model.{name}"] for name in names if f"model.{name}" in there}
    if config.row is not None and config.row.scale == "paper":
        for name in ("name", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if shape.get(name) != getattr(model, name):
                wanted = f"{config.row.name} is of a model with {name}={getattr(model, name)}"
                own = f"this one has {shape.get(name)}"
                raise UserError(f"model.checkpoint={model.checkpoint}: {wanted}, {own}")
    return replace(model, **shape)


def _is_ours(checkpoint: str) -> bool:
    path = Path(checkpoint).expanduser()
    return path.exists() and not (path / "config.json").exists()


def ours(config: GlueConfig, tokenizer: Any, path: Path | None) -> Start:
    """Return an encoder of ours with weights from `path`, or random ones."""
    model = config.model
    length = config.data.max_length
    if length > (positions := bert.longest(model, tokenizer)):
        raise UserError(f"data.max_length={length}: the model has positions for {positions} tokens")

    def build(outputs: int) -> nn.Module:
        built = bert.build_classifier(model, outputs, tokenizer, model.classifier_dropout)
        if path is not None:
            load(built, path)
        return built

    def forward(built: Any, tokens: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        kinds = token_type_ids if model.type_vocab_size > 1 else None
        mask = bert.attention(attention_mask)
        return built(tokens, attention_mask=mask, token_type_ids=kinds).logits

    shape = f"{model.num_hidden_layers} layers of {model.hidden_size}"
    return Start(
        f"{model.name}, {shape}",
        "random weights (model.checkpoint=scratch)" if path is None else str(path),
        PairCoder(tokenizer, model.name, length),
        int(tokenizer.pad or 0),
        build,
        forward,
        lambda folder: tokenizer.save(folder),
    )


def load(model: Any, path: Path) -> None:
    """Load the encoder's weights, all of which must fit; the head is left unchanged.

    Raises:
        UserError: they cannot be read, or do not fit; it names the first difference.
    """
    prefix = f"{model.base_model_prefix}."
    read, _ = read_weights(path)
    theirs = {name: x for name, x in read.items() if name.startswith(prefix)}
    ours = {name: x for name, x in model.state_dict().items() if name.startswith(prefix)}
    pooler = f"{prefix}pooler."  # BERT's, missing after pre-training without next_sentence
    if not any(name.startswith(pooler) for name in theirs):
        theirs |= {name: x for name, x in ours.items() if name.startswith(pooler)}
    theirs = {name: x for name, x in theirs.items() if name in ours or not name.startswith(pooler)}
    difference = first_difference(*({name: x.shape for name, x in each.items()} for each in (ours, theirs)))
    if difference is not None:
        raise UserError(f"model.checkpoint={path} does not fit {model.base_model_prefix}: {difference}")
    model.load_state_dict(theirs, strict=False)


def _hugging_face(config: GlueConfig, name: str, local: bool) -> Start:
    """Return an encoder of the transformers library that reads sentences."""
    logging.set_verbosity_error()  # it would report that the head is new
    logging.disable_progress_bar()
    options: dict[str, Any] = {"local_files_only": True} if local else {}
    try:
        shape = AutoConfig.from_pretrained(name, **options)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        where = "cannot be read as a Hugging Face model" if local else "no such folder, or model on the hub"
        raise UserError(f"model.checkpoint={name}: {where} ({reason[:150]}); {config.cure}") from error
    if tokenizer.pad_token_id is None:
        raise UserError(f"model.checkpoint={name}: its tokenizer has no padding token; take an encoder")
    length = config.data.max_length
    if length > tokenizer.model_max_length:
        raise UserError(f"data.max_length={length}: {name} reads {tokenizer.model_max_length} tokens")
    has_segments = "token_type_ids" in tokenizer.model_input_names

    def build(outputs: int) -> nn.Module:
        dropouts = {key: getattr(config.model, key) for key in DROPOUTS if hasattr(shape, key)}
        if config.model.classifier_dropout is not None:
            dropouts["classifier_dropout"] = config.model.classifier_dropout
        try:
            return AutoModelForSequenceClassification.from_pretrained(
                name, num_labels=outputs, ignore_mismatched_sizes=True, **options, **dropouts
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"model.checkpoint={name}: {' '.join(str(error).split())[:200]}") from error

    def forward(model: Any, tokens: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        kinds = {"token_type_ids": token_type_ids} if has_segments else {}
        mask = attention_mask.long() if attention_mask.shape[1] else None
        return model(tokens, attention_mask=mask, **kinds).logits

    coder = HuggingFaceCoder(tokenizer, length)
    title = f"{shape.model_type} ({name})"
    return Start(title, name, coder, tokenizer.pad_token_id, build, forward, tokenizer.save_pretrained)
