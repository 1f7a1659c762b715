"""Image classifiers of timm: building one, loading weights into it, and the linear probe on top of one."""

import difflib
import inspect
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from torch import Tensor, nn

from repro.errors import UserError
from repro.interop import Weights, read_weights
from repro.reading import printable
from repro.train.checkpoint import first_difference
from vision.config import SCRATCH, DataConfig, ModelConfig


def build(config: ModelConfig, data: DataConfig, classes: int) -> nn.Module:
    """Return the model of a configuration with its initial weights; prints what was changed to fit them.

    Raises:
        UserError: timm has no such model, the model does not take the options, or the weights do not fit.
    """
    model = build_random(config, data, classes)
    if config.pretrained:
        source, weights = config.name, _from_hub(config, data)
    elif config.checkpoint not in (None, SCRATCH):
        source, weights = config.checkpoint, read_weights(Path(config.checkpoint).expanduser())[0]
    else:
        return model
    notes = load(model.trunk if isinstance(model, Probe) else model, weights, source, new_head=True)
    if not dist.is_initialized() or dist.get_rank() == 0:
        print("\n".join(map(printable, notes)), end="\n" * bool(notes))
    return model


def build_random(config: ModelConfig, data: DataConfig, classes: int) -> nn.Module:
    """Return the model of a configuration with random weights, ignoring any others that it names.

    Raises:
        UserError: see `build`.
    """
    options = {"num_classes": 0 if config.probe else classes, "drop_path_rate": config.drop_path or None}
    model = create(config.name, config.kwargs, in_chans=data.channels, **options)
    if config.grad_checkpointing:
        try:
            model.set_grad_checkpointing(True)
        except (AttributeError, AssertionError):  # timm raises either if unsupported
            raise UserError(f"model.grad_checkpointing=true: timm's {config.name} does not have it") from None
    if config.probe:
        model = Probe(model, model.head_hidden_size, classes)
    if config.head_std is not None:
        head = model.get_classifier()
        if not isinstance(head, nn.Linear):
            name = config.name
            raise UserError(f"model.head_std={config.head_std}: the head of {name} is not one linear layer")
        nn.init.trunc_normal_(head.weight, std=config.head_std)
        nn.init.zeros_(head.bias)
    return model


def check_size(model: nn.Module, name: str, kwargs: dict[str, Any], data: DataConfig) -> None:
    """Check that a model takes images of data.size.

    It is tried on the meta device, where nothing is computed; if that fails, on the CPU, as some models look
    at values.

    Raises:
        UserError: it does not.
    """
    training, shape = model.training, (1, data.channels, data.size, data.size)
    model.eval()  # BatchNorm refuses to train on one value
    try:
        tensors = {k: x.to("meta") for k, x in (*model.named_parameters(), *model.named_buffers())}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                torch.func.functional_call(model, tensors, torch.zeros(shape, device="meta"))
            except Exception:
                model(torch.zeros(shape))
    except (AssertionError, RuntimeError, ValueError) as error:
        # a model without the argument, such as a convolutional one, takes any image that is not too small
        plus = "" if "img_size" in kwargs else "+"
        fixed = "img_size" in inspect.signature(type(model)).parameters or hasattr(model, "patch_embed")
        cure = f"set {plus}model.kwargs.img_size={data.size}" if fixed else "set a larger data.size"
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        refused = f"{name} does not take such images ({reason}); {cure}"
        raise UserError(f"data.size={data.size}: {refused}") from error
    finally:
        model.train(training)


def load(model: nn.Module, weights: Weights, source: str, *, new_head: bool = False) -> list[str]:
    """Load weights, all of which must fit, and return a line for each change made to them.

    timm's filter for the model's family translates foreign names, and resizes weights that depend on the size
    of images and patches (position embeddings by `resample_abs_pos_embed`).

    Args:
        model: a timm model or a Probe.
        source: origin of the weights, for messages.
        new_head: keep the model's own head if the weights have another number of classes, or none. An
            autoencoder's decoder is then dropped, and so is its final norm if the model has one after pooling
            instead, as in MAE's fine-tuning.

    Raises:
        UserError: they do not fit; it names the first difference.
    """
    ours = model.state_dict()
    notes: list[str] = []
    if new_head and {"mask_token", "decoder_embed.weight"} <= weights.keys():
        weights = {k: x for k, x in weights.items() if k != "mask_token" and not k.startswith("decoder_")}
    weights = _translated(model, weights, notes)
    if new_head:
        weights = _with_head(model, weights, notes)
    # weights written before torch 0.4.1 lack the counters of BatchNorm
    theirs = {k: x for k, x in ours.items() if k.endswith("num_batches_tracked")} | weights
    conv = f"{_trait(model, 'first_conv')}.weight"
    if conv in ours and conv in theirs and ours[conv].shape[1] != theirs[conv].shape[1]:
        channels = f"its {conv} takes {theirs[conv].shape[1]} channels, here there are {ours[conv].shape[1]}"
        raise UserError(f"{source} does not fit {_name(model)}: {channels}; see data.channels")
    shapes = ({k: x.shape for k, x in each.items()} for each in (ours, theirs))
    difference = first_difference(*shapes)
    if difference is not None:
        raise UserError(f"{source} does not fit {_name(model)}: {difference}")
    model.load_state_dict(theirs)
    return [f"{source}: {note}" for note in notes]


def _translated(model: nn.Module, weights: Weights, notes: list[str]) -> Weights:
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None:
        return weights
    try:
        made = translate(weights, model)
    except Exception:  # weights of another family; `load` then names a difference
        return weights
    notes += [
        f"{name}: {list(x.shape)} there, {list(made[name].shape)} here: resized"
        for name, x in weights.items()
        if name in made and made[name].shape != x.shape
    ]
    return made


def _with_head(model: nn.Module, weights: Weights, notes: list[str]) -> Weights:
    """Return the weights, with the model's own head if theirs has another number of classes."""
    ours = model.state_dict()
    heads = _trait(model, "classifier")
    heads = (heads,) if isinstance(heads, str) else tuple(heads or ())
    there, here = (len(each.get(f"{heads[0]}.bias", ())) for each in (weights, ours))
    if there == here > 0:
        return weights
    new = [f"{head}." for head in heads]
    if there != here:
        notes.append(f"head: {there} classes there, {here} here: {'drawn new' if here else 'left out'}")
    if "fc_norm.weight" in ours and "norm.weight" not in ours and "fc_norm.weight" not in weights:
        weights = {k: x for k, x in weights.items() if not k.startswith("norm.")}
        new.append("fc_norm.")
        notes.append("norm: left out, fc_norm after pooling begins at one")
    own = {k: x for k, x in ours.items() if k.startswith(tuple(new))}
    return {k: x for k, x in weights.items() if not k.startswith(tuple(new))} | own


def _trait(model: nn.Module, key: str) -> Any:
    """Return a key of timm's pretrained_cfg: `classifier` and `first_conv` are names of modules."""
    return getattr(model, "pretrained_cfg", {}).get(key)


def _name(model: nn.Module) -> str:
    return str(getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__))


def _from_hub(config: ModelConfig, data: DataConfig) -> Weights:
    """Return timm's weights of a model, adapted by timm to the number of channels."""
    try:
        return timm.create_model(config.name, pretrained=True, in_chans=data.channels).state_dict()
    except Exception as error:  # timm, the hub and the network raise anything
        raise UserError(
            f"model.pretrained=true: no weights for {config.name} ({str(error).splitlines()[0]}); "
            "model.checkpoint=FILE takes them from a file"
        ) from error


def create(name: str, kwargs: dict[str, Any], **options: Any) -> Any:
    """Return a timm model with random weights; `kwargs` are the user's, `options` ours.

    Raises:
        UserError: timm has no such model, or it does not take the user's arguments.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() shows all"
        raise UserError(f"model.name={name}: timm has no such model; {hint}")
    try:
        return timm.create_model(name, **options, **kwargs)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:  # timm refuses in all these ways
        raise UserError(f"model.name={name}, model.kwargs={kwargs}: {error}") from error


class Probe(nn.Module):
    """A linear classifier on the features of a frozen trunk.

    The features are normalised by BatchNorm without scale and shift, as in MAE's linear probing
    (main_linprobe.py; arXiv 2111.06377, appendix A.1). The trunk is always in evaluation mode: neither its
    weights nor the statistics of its BatchNorm layers change, and its dropout is off.
    """

    def __init__(self, trunk: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.trunk = trunk.requires_grad_(False).eval()
        self.norm = nn.BatchNorm1d(features, affine=False, eps=1e-6)
        self.head = nn.Linear(features, classes)

    def train(self, mode: bool = True) -> "Probe":
        """Set the mode of all modules except the trunk."""
        super().train(mode)
        self.trunk.eval()
        return self

    def get_classifier(self) -> nn.Module:
        """Return the head, as timm's models do."""
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores [batch, classes] of images [batch, channels, height, width]."""
        with torch.no_grad():
            features = self.trunk(images)
        return self.head(self.norm(features))
