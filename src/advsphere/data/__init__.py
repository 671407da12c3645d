"""Data sets by name, from folders or from other libraries: images as pixels in [0, 1] with their class numbers."""

from advsphere.data.augmentation import Augment
from advsphere.data.folders import image_folder
from advsphere.data.images import Dataset, Images, ImageSet
from advsphere.data.sources import load, load_test
from advsphere.data.torch_datasets import Source, from_dataset

__all__ = ["Augment", "Dataset", "ImageSet", "Images", "Source", "from_dataset", "image_folder", "load", "load_test"]
