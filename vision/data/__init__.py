"""Image data sets: readers of each format, one Dataset for all of them, and transforms.

    readers      read files, folders, archives and Hugging Face `datasets` as a Split
    shards       reads tar shards in the webdataset layout as a Split; `writing` writes them
    images       a Split, and the Dataset that decodes and transforms it
    pixels       the same for pixels in memory, in whole batches
    sets         the training, validation and test sets of a recipe
    transforms   for one image in a worker (PIL to uint8), and for a batch on the device
    checking     the checks of `vision/prepare.py check`

A file that cannot be decoded ends the run with an error that names it. Images are never skipped, because runs
to be compared must see the same data.
"""

from vision.data.images import Images, Split
from vision.data.pixels import Pixels
from vision.data.readers import read
from vision.data.sets import Sets, open_sets
from vision.data.transforms import Normalize, build_erasing, test_transform, train_transform

__all__ = [
    "Images",
    "Normalize",
    "Pixels",
    "Sets",
    "Split",
    "build_erasing",
    "open_sets",
    "read",
    "test_transform",
    "train_transform",
]
