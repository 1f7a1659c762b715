"""A task that needs no download: is a sentence as it was written, or are neighbouring words swapped?

The sentences are of Python's own documentation, each is there once, and what becomes of one depends on its
text alone; so the task is the same for one version of Python. The development set is of documents that an
encoder which was pre-trained on the text (data=python_docs of nlp/pretrain_bert.py) did not train on either.
"""

import re
from random import Random

from nlp.text.python_docs import python_docs

WORDS = range(6, 21)  # of a sentence
SENTENCE = re.compile(r"[A-Z][\w'-]*(?:[,;:]? [\w'()-]+)+\.")  # prose, no code
END = re.compile(r"(?<=\.) ")

Labelled = list[tuple[str, int]]  # 1: as written, 0: swapped


def make() -> tuple[Labelled, Labelled]:
    """Return the sentences for training, and those of the documents that are in no training text."""
    lines = python_docs()
    dev = dict.fromkeys(sentences([*lines["valid"], *lines["test"]]))
    train = dict.fromkeys(text for text in sentences(lines["train"]) if text not in dev)
    return [labelled(text) for text in train], [labelled(text) for text in dev]


def sentences(lines: list[str]) -> list[str]:
    """Return the sentences of prose in lines of text."""
    found = (text for line in lines for text in END.split(line))
    return [text for text in found if len(text.split()) in WORDS and SENTENCE.fullmatch(text)]


def labelled(text: str) -> tuple[str, int]:
    """Return a sentence and 1, or, by its own toss of a coin, with neighbours swapped and 0."""
    random = Random(text)
    return (swapped(text, random), 0) if random.random() < 0.5 else (text, 1)


def swapped(text: str, random: Random) -> str:
    """Return a sentence with a third of its words, but for the first, swapped with the next one.

    The capital, commas and the full stop stay in their places, as they would tell.
    """
    words = text.split(" ")
    bare = [word.rstrip(",.") for word in words]
    ends = [word[len(plain) :] for word, plain in zip(words, bare, strict=True)]
    places = random.sample(range(1, len(words) - 1, 2), max(1, len(words) // 6))
    for place in places:
        bare[place], bare[place + 1] = bare[place + 1], bare[place]
    return " ".join(plain + end for plain, end in zip(bare, ends, strict=True))
