"""Images as pixels in [0, 1]: sets by name or from folders, batches, augmentation."""

from advsphere.data.augmentation import Augment, augment, epoch_batches
from advsphere.data.batching import Batch, batches
from advsphere.data.encoded import EncodedImages
from advsphere.data.folders import FolderImages, image_folder
from advsphere.data.images import Dataset, Images, ImageSet, as_float
from advsphere.data.sources import NAMES, load, load_test
from advsphere.data.torch_datasets import DatasetImages, from_dataset

__all__ = [
    "NAMES",
    "Augment",
    "Batch",
    "Dataset",
    "DatasetImages",
    "EncodedImages",
    "FolderImages",
    "ImageSet",
    "Images",
    "as_float",
    "augment",
    "batches",
    "epoch_batches",
    "from_dataset",
    "image_folder",
    "load",
    "load_test",
]
