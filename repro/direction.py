"""Tell from the name of a metric whether higher is better; used wherever metrics are ranked or drawn."""

import re

LOWER = {"loss", "nll", "perplexity", "ppl", "bpc", "kl", "error", "err", "wer", "mse", "mae"}
HIGHER = {"accuracy", "acc", "acc1", "acc5", "top1", "top5", "f1", "auc", "iou", "reward", "margin"}
HIGHER |= {"correlation", "pearson", "pearsonr", "spearman", "spearmanr", "matthews", "mcc"}
HIGHER |= {"bleu", "rouge", "rouge1", "rouge2", "rougel", "rougelsum"}
NEITHER = {"scale"}  # loss_scale


def higher_is_better(metric: str) -> bool | None:
    """Return whether a higher value is better, or None if the name does not tell (`valid_length`).

    Args:
        metric: a key of a record or a column of a log, such as ema_valid_loss, valid_f1 or eval_top1.
    """
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    if words & NEITHER:
        return None
    if words & LOWER:
        return False
    return True if words & HIGHER else None


def better(metric: str) -> str:
    """Return which values are better, in words for an axis; "" if the name does not tell."""
    higher = higher_is_better(metric)
    return "" if higher is None else f"{'higher' if higher else 'lower'} is better"
