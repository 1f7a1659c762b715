"""A task that needs no download: from which package of Python's library is a sentence of documentation?

The sentences are those of the packages' docstrings, each is there once, and its text alone says whether it is
of the training or the development set. So the task is the same for one version of Python. An encoder that was
pre-trained on data=python_docs has read most of them before, but not where they are from.
"""

import functools
import re

from repro.text.python_docs import documents
from repro.train.seeding import hashed

PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "unittest", "xml")
WORDS = range(5, 41)  # of a sentence
END = re.compile(r"(?<=[a-z)]\.) (?=[A-Z])")
DEV = 5  # every 5th sentence goes to the development set

Labelled = list[tuple[str, int]]  # sentence, number of its package


@functools.cache
def make() -> tuple[Labelled, Labelled]:
    """Return the sentences for training and for development."""
    found: dict[str, int] = {}
    for name, lines in documents():
        package = name.split("/")[0]
        if package in PACKAGES:
            for text in sentences(lines):
                found.setdefault(text, PACKAGES.index(package))
    dev = {text for text in found if hashed(f"packages {text}") % DEV == 0}
    return [each for each in found.items() if each[0] not in dev], [
        each for each in found.items() if each[0] in dev
    ]


def sentences(lines: list[str]) -> list[str]:
    """Return the sentences in lines of text."""
    found = (text for line in lines for text in END.split(line))
    return [text for text in found if len(text.split()) in WORDS and re.fullmatch(r"[A-Z].*\.", text)]
