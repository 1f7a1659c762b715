"""The learning rate that follows the batch, in configurations: `optimizer.lr: ${lr:BASE,BASE_BATCH,RULE}`.

It is BASE for a batch_size of BASE_BATCH, and otherwise BASE times the ratio of the two (RULE `linear`) or
its square root (`sqrt`). For a proxy, the larger batch that its batch stands for counts (row.batch_scale). A
run's config.yaml and the ledger have the resulting number.
"""

from typing import Any

from omegaconf import DictConfig

from repro.errors import UserError

RULES = {"linear": 1.0, "sqrt": 0.5}  # exponents of the ratio of batches


def scaled_lr(*words: Any, _root_: DictConfig) -> float:
    """Return the learning rate for the configuration's batch_size.

    Raises:
        UserError: `words` are not a positive number, a positive number and one of RULES.
    """
    written = "${lr:" + ",".join(map(str, words)) + "}"
    batch_size = _root_.get("batch_size")
    if len(words) != 3 or words[2] not in RULES or not all(_positive(word) for word in words[:2]):
        raise UserError(f"{written}: write ${{lr:BASE,BASE_BATCH,RULE}}, with the rule {' or '.join(RULES)}")
    if not _positive(batch_size):
        raise UserError(f"{written} needs a batch_size of at least 1, not {batch_size}")
    base, base_batch, rule = words
    stands_for = batch_size * ((_root_.get("row") or {}).get("batch_scale") or 1)
    return float(base * (stands_for / base_batch) ** RULES[rule])


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
