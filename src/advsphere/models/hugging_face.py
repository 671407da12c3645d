"""Image classifiers of Hugging Face: from a name on the Hub or a folder, without running code of theirs."""

from __future__ import annotations

from typing import Any

from torch import nn

from advsphere.errors import UserError, first_line, needs
from advsphere.models.robustbench import Statistics


def network(place: str, num_classes: int, in_channels: int, image_size: int, pretrained: bool) -> nn.Module:
    """Build an image classifier from its config, or load it with its weights.

    Args:
        place: A name on the Hub, or a folder with config.json.
        num_classes: The number of logits. A head for other classes is replaced by a new one.
        in_channels: The number of channels of the images.
        image_size: The side of the images, in pixels.
        pretrained: Load the weights too.

    Returns:
        The network, which returns an output with `.logits`.

    Raises:
        UserError: If there is no such model, it is no image classifier, or it needs code of its own.
    """
    needs("hub", "transformers")
    from transformers import AutoConfig, AutoModelForImageClassification  # here: it takes seconds to import

    try:
        config = AutoConfig.from_pretrained(place, num_labels=num_classes)
        if getattr(config, "num_channels", in_channels) != in_channels:
            raise UserError(f"hf:{place} takes {config.num_channels} channels, the images have {in_channels}")
        if not pretrained:
            if hasattr(config, "image_size"):
                config.image_size = image_size
            made: nn.Module = AutoModelForImageClassification.from_config(config)  # type: ignore[no-untyped-call]
            return made
        loaded: nn.Module = AutoModelForImageClassification.from_pretrained(
            place, config=config, ignore_mismatched_sizes=True
        )
        return loaded
    except UserError:
        raise
    except Exception as error:  # transformers raises many kinds: no such model, no connection, another task, own code
        raise UserError(f"Hugging Face can't build {place} as an image classifier: {first_line(error)}") from error


def labels(place: str) -> int:
    """The number of classes of the published weights. Raises UserError as `network`."""
    return int(_config(place).num_labels)


def statistics(place: str) -> Statistics:
    """The mean and standard deviation of the model's preprocessing. Raises UserError if it has none."""
    needs("hub", "transformers")
    from transformers import AutoImageProcessor

    try:
        processor: Any = AutoImageProcessor.from_pretrained(place)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise UserError(
            f"hf:{place} does not tell how its images are normalised ({first_line(error)}); give --mean and --std"
        ) from error
    if not getattr(processor, "do_normalize", False):
        channels = int(getattr(_config(place), "num_channels", 3))
        return Statistics((0.0,) * channels, (1.0,) * channels)
    return Statistics(tuple(processor.image_mean), tuple(processor.image_std))


def _config(place: str) -> Any:
    needs("hub", "transformers")
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(place)
    except Exception as error:
        raise UserError(f"Hugging Face has no model {place}: {first_line(error)}") from error
