"""What the logs of masked autoencoders determine about a row; no settings were released with them."""

from repro.ledger.rows import Recipe
from repro.verify import timm
from repro.verify.checks import Check, Evidence, closeness, rates
from repro.verify.timm import epochs

__all__ = ["epochs", "lr", "validation"]

TRAINING_IMAGES = 1_281_167  # of ImageNet-1k


def iterations(recipe: Recipe) -> int:
    """Return the micro-batches of an epoch; the images that do not fill the last one are left out."""
    micro_batch = recipe.get("batch_size") // recipe.get("gradient_accumulation_steps")
    return int(TRAINING_IMAGES // micro_batch)


def lr(evidence: Evidence, recipe: Recipe) -> Check:
    """Compare the learning rates in the log, each the mean over the iterations of an epoch, with ours.

    A step keeps the rate of its first micro-batch. An epoch may end within a step, which then has fewer
    micro-batches.
    """
    assert evidence.log is not None
    count, accumulated = iterations(recipe), recipe.get("gradient_accumulation_steps")
    ours = rates(recipe, count)
    pairs = []
    for epoch, logged in evidence.log.series("lr").items():
        begin = int(epoch) * count
        total = sum(
            ours(begin + first) * (min(first + accumulated, count) - first)
            for first in range(0, count, accumulated)
        )
        pairs.append((int(epoch), total / count, logged))
    return closeness(pairs, f"{len(pairs)} epochs of {count} batches", 1e-12)


def validation(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that fine-tuning was evaluated after every epoch."""
    assert evidence.log is not None
    if not evidence.row.published:
        return Check(None, "pre-training has none")
    return timm.validation(evidence, recipe)
