"""Images as pixels in [0, 1]: sets by name or from folders, batches, augmentation."""

from advsphere.data.augment import Augment, augment, epoch_batches
from advsphere.data.folders import FolderImages, image_folder
from advsphere.data.images import Dataset, Images, ImageSet, as_float
from advsphere.data.sources import NAMES, load, load_test

__all__ = [
    "NAMES",
    "Augment",
    "Dataset",
    "FolderImages",
    "ImageSet",
    "Images",
    "as_float",
    "augment",
    "epoch_batches",
    "image_folder",
    "load",
    "load_test",
]
