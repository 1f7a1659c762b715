"""A task that needs no download: which package of Python's library does a sentence document?

The sentences are taken from the packages' docstrings, each once; a hash of the text assigns it to the
training or the development set. So the task is fixed for one version of Python. An encoder pre-trained on
data=python_docs has read most of the sentences, but not where they come from.
"""

import functools
import re

from repro.text.python_docs import documents
from repro.train.seeding import hashed

PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "unittest", "xml")
WORDS = range(5, 41)  # allowed number of words of a sentence
END = re.compile(r"(?<=[a-z)]\.) (?=[A-Z])")
DEV = 5  # one sentence in 5 goes to the development set

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
    train: Labelled = []
    dev: Labelled = []
    for text, number in found.items():
        (train if hashed(f"packages {text}") % DEV else dev).append((text, number))
    return train, dev


def sentences(lines: list[str]) -> list[str]:
    """Return the sentences in lines of text."""
    found = (text for line in lines for text in END.split(line))
    return [text for text in found if len(text.split()) in WORDS and re.fullmatch(r"[A-Z].*\.", text)]
