"""What `make test` runs of products of parameters: a covering part. The rest is `make test-optim`."""

import itertools
import zlib
from collections.abc import Iterable, Iterator
from types import SimpleNamespace

import pytest

from adan_optim.card import PATHS
from adan_optim.registry import CARDS

NO_PRODUCT = SimpleNamespace(params={})


def beyond_covering(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """The tests that the covering part of each product of parameters does not need.

    The covering part has every optimizer on every path, every pair of values of two parameters on every path,
    and every value on every path for each family of optimizers (those that keep a previous gradient, other
    elementwise ones, the rest). A test whose combinations each show something of their own names them:
    `@pytest.mark.every("name", "variant")`. Where the rules of a family cannot differ, one of them stands for
    all: `@pytest.mark.per_family`. The choice depends on the names of the tests alone. Tests without an
    optimizer are left as they are.
    """
    covered: set[tuple[object, ...]] = set()
    for item in sorted(items, key=lambda item: zlib.crc32(item.name.encode())):
        values = getattr(item, "callspec", NO_PRODUCT).params
        name, path = str(values.get("name")), values.get("path")
        if not (name in CARDS or path in PATHS) or item.get_closest_marker("slow"):
            continue
        card = CARDS.get(name, CARDS["adan"])
        where = (item.path, item.originalname, path)
        family = (card.elementwise, card.previous)
        others = [(key, repr(value)) for key, value in values.items() if key not in ("name", "path")]
        shown: set[tuple[object, ...]] = {(*where, family, *one) for one in others}
        shown |= {(*where, *pair) for pair in itertools.combinations(others, 2)}
        shown.add((*where, family if item.get_closest_marker("per_family") else card.name))
        for every in item.iter_markers("every"):
            shown.add((*where, *(repr(values[key]) for key in every.args)))
        if shown <= covered:
            yield item
        covered |= shown
