"""Rules that score a completion between 0 and 1."""

import re
import warnings
from collections import Counter

WORD = re.compile(r"\w+|[^\w\s]")


def overlap(prompt: str, completion: str, reference: str) -> float:
    """Return the F1 score of the completion's words and signs against the reference's, in any order."""
    made, wanted = Counter(WORD.findall(completion)), Counter(WORD.findall(reference))
    both = sum((made & wanted).values())
    return 2 * both / max(made.total() + wanted.total(), 1)


def parses(prompt: str, completion: str, reference: str) -> float:
    """Return the largest share of the completion's lines, from the first, that parse after the prompt."""
    lines = completion.splitlines()
    for number in range(len(lines), 0, -1):
        if not any(line.strip() for line in lines[:number]):
            break
        try:
            with warnings.catch_warnings(action="ignore"):  # about escapes and comparisons
                compile("\n".join([prompt.rstrip("\n"), *lines[:number]]) + "\n", "<completion>", "exec")
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            continue
        return number / len(lines)
    return 0.0
