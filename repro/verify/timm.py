"""What timm's `args.yaml` and `summary.csv` determine about a row.

The summary has no learning rate, so our schedule is compared with timm's own for the same settings.
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

GPUS = 8  # as in the launch commands in CV/timm; no file of settings has the number


def _or_default(key: str, attribute: str) -> Callable[[Settings], Any]:
    """Return a function that gives an argument, or the model's default as timm does."""

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
    """Return the total batch: `batch_size` is that of one GPU, unless the experiment is named bs4096."""
    named = re.fullmatch(r"bs(\d+)", args["experiment"] or "")
    return int(named[1]) if named else args["batch_size"] * GPUS


TABLE = Table(
    rules(
        ours={
            "aa": "augment.auto_augment",
            "bias_decay": "optimizer.decay_bias_and_norm",
            "model": "model.name",
            "num_classes": "data.classes",
            "opt": "optimizer.name",
            "opt_betas": "optimizer.betas",
            "opt_eps": "optimizer.eps",
            "recount": "augment.erase_count",
            "remode": "augment.erase_mode",
            "reprob": "augment.erase",
            "sched": "schedule.name",
            "smoothing": "augment.label_smoothing",
            "train_interpolation": "augment.interpolation",
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
        same={
            "": "channels_last clip_grad epochs seed workers",
            "augment.": "color_jitter cutmix hflip mixup mixup_mode mixup_prob mixup_switch_prob ratio scale",
            "model.": "drop_path pretrained",
            "optimizer.": "lr max_grad_norm no_prox weight_decay",
            "schedule.": "cooldown_epochs min_lr warmup_epochs warmup_lr",
        },
        must={
            "aug_splits": 0,
            "dist_bn": "reduce",
            "drop": 0.0,
            "epoch_repeats": 0.0,
            "eval_metric": "top1",
            "lr_cycle_limit": 1,
            "lr_cycle_mul": 1.0,
            "lr_k_decay": 1.0,
            "mixup_off_epoch": 0,
            "train_split": "train",
            "tta": 0,
            "val_split": "validation",
            "vflip": 0.0,
        },
        off="apex_amp bn_tf jsd_loss no_aug resplit split_bn sync_bn",
        unset="bn_eps bn_momentum cutmix_minmax drop_block drop_connect gp lr_noise start_epoch "
        "validation_batch_size",
        # options of other optimizers and schedules, of what is off, of logs, files and speed; native_amp is
        # set after the file was written
        free="checkpoint_hist clip_mode configure data_dir decay_epochs decay_rate experiment local_rank "
        "log_interval log_wandb lr_cycle_decay lr_noise_pct lr_noise_std model_ema_force_cpu momentum "
        "native_amp no_prefetcher no_resume_opt opt_debug output patience_epochs pin_mem "
        "recovery_interval resume save_images torchscript use_multi_epochs_loader",
    ),
    absent={"bn_tf": False, "no_prox": False},  # which other versions of the script lack
)


def lr(evidence: Evidence, recipe: Recipe) -> Check:
    """Compare our learning rate of every epoch with that of timm's scheduler for the released settings."""
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
    """Check that the log has the epochs of the configuration, from 0 and without a gap."""
    assert evidence.log is not None
    count = recipe.get("epochs") + recipe.get("schedule.cooldown_epochs")
    return positions("epoch", range(count), evidence.log.table["epoch"], f"{count}")


def validation(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that the log has an evaluation for every epoch, as our loop does."""
    assert evidence.log is not None
    table = evidence.log.table
    measured = table["epoch"][table["eval_loss"].notna()]
    return positions("validation at epoch", table["epoch"], measured, "every epoch")
