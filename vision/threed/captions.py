"""The captions of the embedded world: 128 of them, 8 shapes in 8 colours and 2 sizes."""

import itertools
from typing import NamedTuple

from repro.errors import UserError

SHAPES = "sphere", "cube", "torus", "cylinder", "cone", "pyramid", "mug", "chair"
COLOURS = {
    "red": (0.86, 0.14, 0.12),
    "green": (0.15, 0.62, 0.20),
    "blue": (0.13, 0.28, 0.85),
    "yellow": (0.95, 0.83, 0.10),
    "orange": (0.96, 0.50, 0.06),
    "purple": (0.52, 0.16, 0.68),
    "cyan": (0.10, 0.74, 0.80),
    "brown": (0.45, 0.27, 0.13),
}
SIZES = {"": 1.0, "small": 0.6}


class Caption(NamedTuple):
    """The words of a caption: keys of SIZES, COLOURS and SHAPES."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        words = " ".join(filter(None, self))
        return f"a{'n' * (words[0] in 'aeiou')} {words}"


ALL = tuple(Caption(*words) for words in itertools.product(SIZES, COLOURS, SHAPES))
CAPTIONS = tuple(map(str, ALL))


def parse(prompt: str) -> Caption:
    """Return the words of a caption, such as "a small red torus".

    Raises:
        UserError: it is none of CAPTIONS.
    """
    try:
        return ALL[CAPTIONS.index(prompt)]
    except ValueError:
        raise UserError(
            f"prompt={prompt!r}: without a text-to-image model it must be an object of the embedded world, "
            f'"a [small] COLOUR SHAPE": {", ".join(COLOURS)}; {", ".join(SHAPES)}'
        ) from None
