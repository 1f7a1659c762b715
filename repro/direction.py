"""Whether more or less of a metric is better, by its name; all that ranks or draws metrics asks here."""

import re

LOWER = {"loss", "nll", "perplexity", "ppl", "bpc", "kl", "error", "err"}
HIGHER = {"accuracy", "acc", "acc1", "acc5", "top1", "top5", "f1", "correlation", "pearson", "spearman"}
HIGHER |= {"reward", "margin"}


def higher_is_better(metric: str) -> bool | None:
    """Return whether a higher value is better, None where the name does not tell (`valid_length`).

    Args:
        metric: a key of a record or a column of a log, such as ema_valid_loss, valid_f1 or eval_top1.
    """
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    if words & LOWER:
        return False
    return True if words & HIGHER else None
