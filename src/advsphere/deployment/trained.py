"""A trained network with its class names and its preprocessing: from a photo to the name of a class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
import yaml
from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin
from PIL import Image
from torch import Tensor, nn

from advsphere import named
from advsphere.calling import logits_of
from advsphere.data import ImageSet
from advsphere.data.encoded import Encoded, View, decoded
from advsphere.data.images import as_float
from advsphere.data.sources import SIZES
from advsphere.errors import UserError
from advsphere.evaluation import Evaluation
from advsphere.files import require_writable
from advsphere.identity import model_checksum
from advsphere.runs.build import build_model, chosen_device, from_scratch, load_test_data
from advsphere.runs.config import GIVEN, Config, to_dict
from advsphere.runs.config_yaml import from_yaml
from advsphere.runs.folder import load_network, read_classes, read_config, read_provenance
from advsphere.runs.target import evaluations
from advsphere.threat import radius
from advsphere.typed import typed

Picture = str | Path | Image.Image | np.ndarray | Tensor
"""An image file, a PIL image, an array (H, W, C) or (H, W) of uint8, or a tensor (C, H, W), uint8 or in [0, 1]."""


class Prediction(NamedTuple):
    """The most likely classes of one image.

    Attributes:
        classes: Their names, the most likely first.
        probabilities: Their probabilities, by the softmax of the logits.
    """

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    def __str__(self) -> str:
        """Such as "cat 91.2 %, dog 5.1 %"."""
        named = zip(self.classes, self.probabilities, strict=True)
        return ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in named)


class TrainedClassifier(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="advsphere",
    tags=["image-classification", "adversarial-robustness"],
):
    """A network that knows its class names and how to prepare an image. It maps pixels in [0, 1] to logits.

    `save_pretrained`, `from_pretrained` and `push_to_hub` keep it in a folder or on the Hugging Face Hub, with a model
    card. The weights are a safetensors file, and loading runs no code of the folder.

    Args:
        settings: The config of the run, as JSON-able data.
        classes: The names of the K classes.
        shape: The images, (C, H, W).
        evaluations: Summaries of the run's evaluations, for the model card.
        network: The trained network; by default a new one by the settings, for weights that are loaded afterwards.

    Raises:
        UserError: If the settings name a network that is not part of a known library.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        classes: list[str],
        shape: list[int],
        evaluations: list[dict[str, Any]] | None = None,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.evaluations = settings, evaluations or []
        self.classes, self.shape = tuple(classes), (shape[0], shape[1], shape[2])
        self.network = _built(self.config, self.classes, self.shape) if network is None else network
        self.eval()

    def __repr__(self) -> str:
        images = f"images {' x '.join(map(str, self.shape))}, {len(self.classes):,} classes"
        return f"<TrainedClassifier {self.config.recipe}: {self.config.model.name}, {images}>"

    @property
    def config(self) -> Config:
        """The config of the run that trained the network."""
        return from_yaml(yaml.safe_dump(self.settings), "the settings of this network")

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.network(x))

    def preprocess(self, image: Picture) -> Tensor:
        """Prepare an image as the test images were prepared.

        Args:
            image: The image. A tensor has to have the network's shape already.

        Returns:
            Pixels (C, H, W) float32 in [0, 1].

        Raises:
            UserError: If the image can't be read, or has another shape or type.
        """
        if isinstance(image, Tensor):
            if tuple(image.shape) != self.shape:
                raise UserError(f"the network takes images of shape {self.shape}, not {tuple(image.shape)}")
            return as_float(image)
        if isinstance(image, np.ndarray):
            try:
                image = Image.fromarray(image)
            except (TypeError, ValueError) as error:
                raise UserError(f"an array has to be (H, W, 3) or (H, W), of uint8: {error}") from error
        name = "the image" if isinstance(image, Image.Image) else str(image)
        if not isinstance(image, Image.Image):
            image = Encoded(name, name).open()
        view = View(self.shape[1], max(self.config.data.resize or 0, self.shape[1]))
        return as_float(decoded(image, name, view, channels=self.shape[0]))

    @torch.no_grad()
    def predict(self, images: Picture | Sequence[Picture], *, top: int = 1, batch_size: int = 64) -> list[Prediction]:
        """Classify images.

        Args:
            images: One image or several, each as in `preprocess`; also a tensor or array of several.
            top: Number of classes to name for each image, the most likely first.
            batch_size: Images in one forward.

        Returns:
            A prediction for each image.

        Raises:
            UserError: If an image can't be read or does not fit.
        """
        if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
            images = list(images)
        several = [images] if isinstance(images, str | Path | Image.Image | np.ndarray | Tensor) else list(images)
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        found = list[Prediction]()
        for start in range(0, len(several), batch_size):
            x = torch.stack([self.preprocess(image) for image in several[start : start + batch_size]])
            likely = self(x.to(device)).float().softmax(1).topk(min(top, len(self.classes)))
            for places, values in zip(likely.indices.tolist(), likely.values.tolist(), strict=True):
                found.append(Prediction(tuple(self.classes[i] for i in places), tuple(values)))
        return found

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Path | str, **options: Any) -> Self:
        """Read a network from a folder or from the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: A folder that `save_pretrained` wrote, or a name on the Hub.
            **options: As in huggingface_hub, such as `revision`.

        Returns:
            The network in eval mode.

        Raises:
            UserError: If it can't be read, or is not part of a known library.
        """
        place = Path(pretrained_model_name_or_path)
        if place.is_dir() and not (place / "config.json").is_file():
            raise UserError(f"{place} holds no network: there is no config.json, as save_pretrained writes")
        with _hub(f"{place} can't be read", "check the name and the connection"):
            return super().from_pretrained(pretrained_model_name_or_path, **options)

    @typed
    def save_pretrained(self, save_directory: Path | str, **options: Any) -> str | None:
        """Write the network with its settings and its model card.

        Args:
            save_directory: The folder, created if it does not exist.
            **options: As in huggingface_hub.

        Returns:
            The URL of the commit if it is pushed to the Hub, else None.

        Raises:
            UserError: If the folder can't be written.
        """
        require_writable(Path(save_directory))
        url: str | None = super().save_pretrained(save_directory, **options)
        return url

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish the network on the Hugging Face Hub, with its model card.

        Args:
            repo_id: Its name there, as USER/NAME.
            **options: As in huggingface_hub, such as `private`.

        Returns:
            The URL of the commit.

        Raises:
            UserError: If the Hub can't be reached or refuses it.
        """
        with _hub(f"{repo_id} can't be published", "check name and connection, and log in with `hf auth login`"):
            return str(super().push_to_hub(repo_id, **options))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The model card: recipe, data, threat model, and robust accuracy with its interval and evidence.

        Args:
            *args: Not used.
            **kwargs: Not used.

        Returns:
            The card.
        """
        config = self.config
        facts = {
            "recipe": config.recipe,
            "network": config.model.name,
            "data": config.data.name,
            "classes": str(len(self.classes)),
            "input": f"{' x '.join(map(str, self.shape))}, pixels in [0, 1]; the normalisation is inside the network",
            "objective": type(config.objective).__name__,
            "hypersphere embedding": "no" if config.sphere is None else f"yes, s = {config.sphere.scale:g}",
            "threat model": f"{config.threat.norm}, radius {radius(config.threat.eps)}",
        }
        lines = [str(ModelCardData(library_name="advsphere", pipeline_tag="image-classification"))]
        lines = ["---", *lines, "---", "", f"# {config.recipe}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in facts.items()]
        lines += ["", "```python", "from advsphere.deployment import TrainedClassifier", ""]
        lines += [
            'model = TrainedClassifier.from_pretrained("FOLDER OR NAME")',
            'model.predict("photo.jpg")',
            "```",
            "",
        ]
        lines += _evidence(self.evaluations)
        return ModelCard("\n".join(lines) + "\n")


@typed
def load(
    run: Path | str,
    which: Literal["best", "last"] = "best",
    *,
    model: nn.Module | None = None,
    device: str | torch.device | None = None,
) -> TrainedClassifier:
    """Load the network of a run, to use it. The images of the run are not needed.

    Args:
        run: The folder of the run.
        which: The checkpoint.
        model: The network, for a run whose network was passed from Python. The run's weights are loaded into it.
        device: Where to put it, such as "cuda:1"; by default the GPU if there is one.

    Returns:
        The network in eval mode, with class names and preprocessing.

    Raises:
        UserError: If the run or its checkpoint does not exist, is damaged, or needs a network that is not passed.
    """
    folder = Path(run)
    config, known = read_config(folder), read_classes(folder)
    shape = _shape(config) or read_provenance(folder).get("shape")
    if known is None or shape is None:  # an earlier version's run
        images = load_test_data(config)
        known, shape = known or list(images.classes), shape or images.shape
    network = load_network(folder, which, _blank(tuple(known), tuple(shape)), model=model)
    made = TrainedClassifier(to_dict(config), list(known), list(shape), _summaries(folder, network), network)
    return made.to(chosen_device(device))


@contextmanager
def _hub(problem: str, cure: str) -> Iterator[None]:
    """Tell an error of huggingface_hub or its client, which raise many kinds, in one line with its cure."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{problem}: {type(error).__name__}: {' '.join(str(error).split())}; {cure}") from error


def _shape(config: Config) -> tuple[int, int, int] | None:
    """(C, H, W) of the run's images, if the config decides it."""
    data = config.data
    if data.name in SIZES:
        return 1 if data.name == "digits" else 3, SIZES[data.name], SIZES[data.name]
    return (3, data.image_size, data.image_size) if data.image_size is not None else None


def _blank(classes: tuple[str, ...], shape: tuple[int, int, int]) -> ImageSet:
    """One black image: all that a network has to know about its images before it is built."""
    return ImageSet(torch.zeros((1, *shape), dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), classes)


def _built(config: Config, classes: tuple[str, ...], shape: tuple[int, int, int]) -> nn.Module:
    if named.is_name(config.model.name) or config.model.name.startswith(GIVEN):
        raise UserError(
            f"this network was built by {config.model.name}, which is not part of the saved files; build it yourself, "
            "and pass it: TrainedClassifier(..., network=...), or load(RUN, model=...)"
        )
    return build_model(from_scratch(config), _blank(classes, shape))


def _summaries(folder: Path, network: nn.Module) -> list[dict[str, Any]]:
    """Those of the evaluations of this very network, which this version can read."""
    checksum, found = model_checksum(network), list[dict[str, Any]]()
    for place in evaluations(folder):
        with suppress(UserError):
            evaluation = Evaluation.load(place / "evaluation.json")
            if evaluation.identity["model"]["checksum"] == checksum:
                found.append(_summary(evaluation))
    return found


def _summary(evaluation: Evaluation) -> dict[str, Any]:
    identity, (low, high) = evaluation.identity, evaluation.worst.interval
    return {
        "suite": identity["suite"]["name"],
        "threat": f"{identity['threat']['norm']} {radius(identity['threat']['eps'])}",
        "n": evaluation.clean.n,
        "clean": evaluation.clean.accuracy,
        "worst": evaluation.worst.accuracy,
        "low": low,
        "high": high,
        "ledger": evaluation.ledger,
    }


def _evidence(summaries: Sequence[dict[str, Any]]) -> list[str]:
    if not summaries:
        return ["The robustness of this network has not been evaluated (`advsphere evaluate`)."]
    rows = [
        f"| {s['suite']} | {s['threat']} | {s['n']} | {100 * s['clean']:.1f} % | {100 * s['worst']:.1f} % "
        f"({100 * s['low']:.1f} to {100 * s['high']:.1f}) | `{s['ledger'][:16]}` |"
        for s in summaries
    ]
    return [
        "Accuracy under attack is an upper bound of the robust accuracy. `advsphere verify` checks the ledger.",
        "",
        "| suite | threat | images | clean | worst case (95 % interval) | ledger |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
