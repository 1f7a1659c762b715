"""What timm's `args.yaml` and `summary.csv` fix of a row.

The summary has no learning rate, so the schedule is compared with timm's own, given the settings.
"""

import re
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

from repro.ledger.rows import Recipe
from repro.verify.checks import Check, Evidence, closeness, positions, rates
from repro.verify.settings import Ours, Settings, Table, rules

GPUS = 8  # of the launch commands in CV/timm; no file of settings says how many there were


def _or_default(key: str, attribute: str) -> Callable[[Settings], Any]:
    """What timm does with an argument that is not given: it asks the model."""

    def value(args: Settings) -> Any:
        if args[key] not in (None, ""):
            return args[key]
        return getattr(timm.get_pretrained_cfg(args["model"]), attribute)

    return value


def _image_size(args: Settings) -> int:
    return int(args["img_size"] or _or_default("input_size", "input_size")(args)[-1])


def _ema(args: Settings) -> float | None:
    return args["model_ema_decay"] if args["model_ema"] else None


def _batch(args: Settings) -> int:
    """batch_size is a GPU's; the total is in no file, unless the experiment is named after it (bs4096)."""
    named = re.fullmatch(r"bs(\d+)", args["experiment"] or "")
    return int(named[1]) if named else args["batch_size"] * GPUS


TABLE = Table(
    rules(
        ours={
            "aa": "augment.auto_augment",
            "bias_decay": "optimizer.decay_bias_and_norm",
            "channels_last": "channels_last",
            "clip_grad": "clip_grad",
            "color_jitter": "augment.color_jitter",
            "cooldown_epochs": "schedule.cooldown_epochs",
            "cutmix": "augment.cutmix",
            "drop_path": "model.drop_path",
            "epochs": "epochs",
            "hflip": "augment.hflip",
            "lr": "optimizer.lr",
            "max_grad_norm": "optimizer.max_grad_norm",
            "min_lr": "schedule.min_lr",
            "mixup": "augment.mixup",
            "mixup_mode": "augment.mixup_mode",
            "mixup_prob": "augment.mixup_prob",
            "mixup_switch_prob": "augment.mixup_switch_prob",
            "model": "model.name",
            "no_prox": "optimizer.no_prox",
            "num_classes": "data.classes",
            "opt": "optimizer.name",
            "opt_betas": "optimizer.betas",
            "opt_eps": "optimizer.eps",
            "pretrained": "model.pretrained",
            "ratio": "augment.ratio",
            "recount": "augment.erase_count",
            "remode": "augment.erase_mode",
            "reprob": "augment.erase",
            "scale": "augment.scale",
            "sched": "schedule.name",
            "seed": "seed",
            "smoothing": "augment.label_smoothing",
            "train_interpolation": "augment.interpolation",
            "warmup_epochs": "schedule.warmup_epochs",
            "warmup_lr": "schedule.warmup_lr",
            "weight_decay": "optimizer.weight_decay",
            "workers": "workers",
            "amp": Ours("amp", lambda args: "fp16" if args["amp"] or args["native_amp"] else "no"),
            "aug_repeats": Ours("repeats", lambda args: args["aug_repeats"] or 1),
            "batch_size": Ours("batch_size", _batch),
            "bce_loss": Ours("loss", lambda args: "bce" if args["bce_loss"] else "ce"),
            "crop_pct": Ours("data.crop_pct", _or_default("crop_pct", "crop_pct")),
            "dataset": Ours("data.name", lambda args: args["dataset"] or "imagefolder"),
            "img_size": Ours("data.size", _image_size),
            "initial_checkpoint": Ours("model.checkpoint", lambda args: args["initial_checkpoint"] or None),
            "input_size": Ours("data.size", _image_size),
            "interpolation": Ours("data.interpolation", _or_default("interpolation", "interpolation")),
            "mean": Ours("data.mean", _or_default("mean", "mean")),
            "model_ema": Ours("ema_decay", _ema),
            "model_ema_decay": Ours("ema_decay", _ema),
            "std": Ours("data.std", _or_default("std", "std")),
        },
        must={
            "apex_amp": False,
            "aug_splits": 0,
            "bn_eps": None,
            "bn_momentum": None,
            "bn_tf": False,
            "cutmix_minmax": None,
            "dist_bn": "reduce",  # see docs/ledger.md: the loop does not average the statistics of BatchNorm
            "drop": 0.0,
            "drop_block": None,
            "drop_connect": None,
            "epoch_repeats": 0.0,
            "eval_metric": "top1",
            "gp": None,
            "jsd_loss": False,
            "lr_cycle_limit": 1,
            "lr_cycle_mul": 1.0,
            "lr_k_decay": 1.0,
            "lr_noise": None,
            "mixup_off_epoch": 0,
            "no_aug": False,
            "resplit": False,
            "split_bn": False,
            "start_epoch": None,
            "sync_bn": False,
            "train_split": "train",
            "tta": 0,
            "val_split": "validation",
            "validation_batch_size": None,
            "vflip": 0.0,
        },
        # of other optimizers and schedules, of what is off, of logs, files and speed; native_amp is set after
        # the file was written
        free="checkpoint_hist clip_mode configure data_dir decay_epochs decay_rate experiment local_rank "
        "log_interval log_wandb lr_cycle_decay lr_noise_pct lr_noise_std model_ema_force_cpu momentum "
        "native_amp no_prefetcher no_resume_opt opt_debug output patience_epochs pin_mem "
        "recovery_interval resume save_images torchscript use_multi_epochs_loader",
    ),
    absent={"bn_tf": False, "no_prox": False},  # of other versions of the script
)


def lr(evidence: Evidence, recipe: Recipe) -> Check:
    """Compare the learning rate of every epoch with that of timm's scheduler, given the released settings."""
    args = next(iter(evidence.settings.values()), None)
    if args is None:
        return Check(None, "settings not here")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=args["lr"])
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=args["epochs"],
        lr_min=args["min_lr"],
        cycle_mul=args["lr_cycle_mul"],
        cycle_decay=args["lr_cycle_decay"],
        cycle_limit=args["lr_cycle_limit"],
        warmup_t=args["warmup_epochs"],
        warmup_lr_init=args["warmup_lr"],
        k_decay=args["lr_k_decay"],
    )
    ours = rates(recipe)
    pairs = []
    for epoch in range(args["epochs"] + args["cooldown_epochs"]):
        scheduler.step(epoch)
        pairs.append((epoch, ours(epoch), optimizer.param_groups[0]["lr"]))
    return closeness(pairs, f"{len(pairs)} epochs, timm's scheduler", 1e-12)


def epochs(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that the log has the configuration's epochs, from 0 on and without a gap."""
    assert evidence.log is not None
    count = recipe.get("epochs") + recipe.get("schedule.cooldown_epochs")
    return positions("epoch", range(count), evidence.log.table["epoch"], f"{count}")


def validation(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that every epoch was measured, as the loop does."""
    assert evidence.log is not None
    table = evidence.log.table
    measured = table["epoch"][table["eval_loss"].notna()]
    return positions("validation at epoch", table["epoch"], measured, "every epoch")
