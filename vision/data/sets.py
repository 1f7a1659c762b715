"""The training, validation and test sets of a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Subset

from repro.errors import UserError
from vision.config import AugmentConfig, DataConfig
from vision.data.images import Images, Split
from vision.data.pixels import Pixels, in_memory, only_shifts
from vision.data.readers import read
from vision.data.transforms import is_random, test_transform, train_transform

Pairs = Images | Subset[tuple[Tensor, int]]


@dataclass
class Sets:
    """Sets of pairs of an image, uint8 [channels, size, size], and its class index.

    Attributes:
        train: augmented.
        valid: evaluated during training: the test images, or with data.valid_share held-out training images.
        test: evaluated once, at the end; None if `valid` is the test images.
        classes: names of the classes.
    """

    train: Pairs
    valid: Pairs
    test: Images | None
    classes: list[str]

    @property
    def measured(self) -> str:
        """Prefix of the metrics on `valid`: test or valid."""
        return "test" if self.test is None else "valid"


def open_sets(config: DataConfig, augment: AugmentConfig) -> Sets:
    """Read a data set.

    Raises:
        UserError: it is missing or malformed, or data.valid_share is too small or large for its classes.
    """
    train_split, test_split, classes = read(config)
    train, test = _augmented(train_split, config, augment), _plain(test_split, config)
    if config.valid_share == 0:
        return Sets(train, test, None, classes)
    kept, held = _hold_out(train_split.labels, config.valid_share)
    return Sets(Subset(train, kept), Subset(_plain(train_split, config), held), test, classes)


def _augmented(split: Split, config: DataConfig, augment: AugmentConfig) -> Images:
    """Return a split as training images."""
    transform = train_transform(config, augment)
    if in_memory(split, config) and only_shifts(augment):
        return Pixels(split, transform, augment.padding if augment.crop == "padded" else 0, augment.hflip)
    draft = config.size if config.draft else None
    return Images(split, config.channels, transform, draft, is_random(augment))


def _plain(split: Split, config: DataConfig) -> Images:
    """Return a split as images to evaluate on."""
    transform = test_transform(config)
    if in_memory(split, config) and config.crop_pct == 1:
        return Pixels(split, transform)
    return Images(split, config.channels, transform, random=False)


def _hold_out(labels: Sequence[int], share: float) -> tuple[list[int], list[int]]:
    """Return the indices of the images to train on and of a fixed held-out share of each class.

    Raises:
        UserError: a class has too few images, or all are too few for the classes.
    """
    from sklearn.model_selection import train_test_split

    try:
        kept, held = train_test_split(range(len(labels)), test_size=share, random_state=0, stratify=labels)
    except ValueError as error:
        raise UserError(f"data.valid_share={share}: {error}") from error
    return sorted(kept), sorted(held)
