"""What the logs of masked autoencoders fix of a row; no settings were released with them."""

from repro.ledger.rows import Recipe
from repro.verify import timm
from repro.verify.checks import Check, Evidence, closeness, positions, rates

TRAINING_IMAGES = 1_281_167  # of ImageNet-1k


def iterations(recipe: Recipe) -> int:
    """Return the micro-batches of an epoch; the rest of the images is left out."""
    return int(TRAINING_IMAGES // (recipe.get("batch_size") // _accumulated(recipe)))


def lr(evidence: Evidence, recipe: Recipe) -> Check:
    """Compare the learning rates in the log, each the mean over an epoch's iterations, with ours.

    The rate is set by the position in the epoch where a step begins to collect gradients, and holds until
    the next does. An epoch may end within a step, which then has fewer micro-batches.
    """
    assert evidence.log is not None
    count, accumulated = iterations(recipe), _accumulated(recipe)
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


def epochs(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that the log has the configuration's epochs, from 0 on and without a gap."""
    assert evidence.log is not None
    count = recipe.get("epochs")
    return positions("epoch", range(count), evidence.log.table["epoch"], f"{count}")


def validation(evidence: Evidence, recipe: Recipe) -> Check:
    """Check that every epoch was measured, in fine-tuning."""
    assert evidence.log is not None
    if not evidence.row.published:
        return Check(None, "pre-training has none")
    return timm.validation(evidence, recipe)


def _accumulated(recipe: Recipe) -> int:
    return int(recipe.config.get("gradient_accumulation_steps", 1))
