"""What a completion is worth by a rule, between 0 and 1."""

import re
import warnings
from collections import Counter

WORD = re.compile(r"\w+|[^\w\s]")


def overlap(prompt: str, completion: str, reference: str) -> float:
    """Return how much of the words and signs are those of the reference, in any order: the F1 score."""
    made, wanted = Counter(WORD.findall(completion)), Counter(WORD.findall(reference))
    both = sum((made & wanted).values())
    return 2 * both / max(made.total() + wanted.total(), 1)


def parses(prompt: str, completion: str, reference: str) -> float:
    """Return the share of the completion's lines, from its first, that are valid Python after the prompt."""
    lines = completion.splitlines()
    for number in range(len(lines), 0, -1):
        if not any(line.strip() for line in lines[:number]):
            break
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd escapes and comparisons
                compile("\n".join([prompt.rstrip("\n"), *lines[:number]]) + "\n", "<completion>", "exec")
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
        return number / len(lines)
    return 0.0
