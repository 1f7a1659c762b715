"""Image data sets: readers of each format, one Dataset for all of them, and the changes to their images.

    readers      files, folders, archives and Hugging Face `datasets` to a Split
    shards       tar shards in the webdataset layout to a Split; `writing` makes them
    images       a Split, and the Dataset that decodes and transforms it
    sets         what a recipe trains on, measures on and is tested on
    transforms   what workers do to an image (PIL, to uint8), and what the device does to a batch
    checking     what `vision/prepare.py check` looks for

A file that cannot be decoded ends the run with an error that names it; images are never skipped, because two
runs that are compared should have seen the same data.
"""

from vision.data.images import Images, Split
from vision.data.readers import read
from vision.data.sets import Sets, open_sets
from vision.data.transforms import Normalize, build_erasing, test_transform, train_transform

__all__ = [
    "Images",
    "Normalize",
    "Sets",
    "Split",
    "build_erasing",
    "open_sets",
    "read",
    "test_transform",
    "train_transform",
]
