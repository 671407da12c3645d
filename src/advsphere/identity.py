"""What an evaluation was of: checksums of model and data."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from advsphere.data import Images
from advsphere.files import tensor_checksum


def model_checksum(model: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of all parameters and saved buffers, wherever they live."""
    return tensor_checksum({name: v for name, v in model.state_dict().items() if isinstance(v, Tensor)})


def data_checksum(images: Images, batch_size: int) -> str:
    """SHA-256 over the shape, the float32 pixels and the labels of all images, in order; `batch_size` at a time."""
    digest = hashlib.sha256(f"{len(images)} {images.shape}".encode())
    for index in torch.arange(len(images)).split(batch_size):
        digest.update(images.batch(index)[0].cpu().contiguous().numpy().tobytes())
    digest.update(images.labels.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
