"""Export a network in the forms that other tools read, and check on the spot that it gives the same logits."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor, nn

from advsphere.calling import answer, eagerly, logits_of, switch_mode
from advsphere.errors import UserError, first_line
from advsphere.files import write_atomically
from advsphere.folding import replace_modules
from advsphere.hypersphere import HypersphereHead
from advsphere.rng import Rng
from advsphere.state import duplicate, network_state, require_shapes, unpacked
from advsphere.typed import typed

TOLERANCE = 1e-4
"""The allowed difference of two logits, relative to the largest one. Other runtimes sum in another order."""


class CosineHead(nn.Module):
    """A `HypersphereHead` for deployment: the normalised weights and the scale are one plain linear layer.

    Args:
        head: The trained head.
    """

    def __init__(self, head: HypersphereHead) -> None:
        super().__init__()
        self.normalize_features = head.normalize_features
        weight = F.normalize(head.weight, dim=-1) if head.normalize_weights else head.weight
        self.linear = nn.Linear(head.in_features, head.out_features, bias=False, device=weight.device)
        self.linear.weight = nn.Parameter((weight * head.scale).detach(), requires_grad=False)

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.linear(F.normalize(z, dim=-1) if self.normalize_features else z)
        return logits


class _Deployed(nn.Module):
    """A network that returns its logits alone, and leaves its input as it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.network(x.clone()))


@typed
def export(model: nn.Module, shape: tuple[int, int, int], path: Path | str, to: str) -> float:
    """Write a network for other tools. The batch size stays free.

    The weights' normalisation and the scale of a `HypersphereHead` become a plain linear layer. What was written is
    read again and compared with the network on random images. safetensors holds the network's own weights.

    Args:
        model: Maps pixels in [0, 1] to logits.
        shape: The images, (C, H, W).
        path: The file to write.
        to: One of `FORMATS`.

    Returns:
        The largest difference of the logits, relative to the largest logit.

    Raises:
        UserError: If the format is unknown or its library is missing, the network can't be exported, or the exported
            network gives other logits. Nothing is written then.
    """
    if to not in FORMATS:
        raise UserError(f"there is no format {to!r}; choose one of {', '.join(FORMATS)}")
    require_shapes(model)
    original = duplicate(getattr(model, "_orig_mod", model)).cpu()  # what torch.compile was given
    if to != "safetensors":
        original.float()  # other tools give images of this type
    deployed = _Deployed(duplicate(original))
    for network in (original, deployed):
        switch_mode(network, train=False)
    heads: dict[nn.Module, nn.Module] = {
        module: CosineHead(module) for module in deployed.modules() if isinstance(module, HypersphereHead)
    }
    replace_modules(deployed, heads)
    x = Rng(0, torch.arange(3)).uniform(shape, "export")
    try:
        with torch.no_grad(), eagerly(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters warn about their own internals
            content, run = FORMATS[to](original if to == "safetensors" else deployed, x)
            pairs = [(answer(original, part), run(part.clone())) for part in (x, x[:1])]
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{to} needs {error.name}: pip install 'advsphere[export]'") from error
    except Exception as error:  # exporters run the user's code and fail in many ways
        raise UserError(
            f"{type(model).__name__} can't be exported to {to}: {_cause(error)}; try another format"
        ) from error
    largest = max(float(expected.abs().amax()) for expected, _ in pairs) or 1.0
    worst = max(float((found - expected).abs().amax()) for expected, found in pairs) / largest
    if not worst <= TOLERANCE:
        raise UserError(f"the exported network gives other logits, by {worst:.2g} of the largest; try another format")
    write_atomically(Path(path), content)
    return worst


Exported = tuple[bytes, Callable[[Tensor], Tensor]]
"""The content of a file, and the network as it is read from it."""


def _onnx(model: nn.Module, x: Tensor) -> Exported:
    import onnxruntime
    import onnxscript  # noqa: F401 (torch.onnx needs it, and would name it in a long message)

    program = torch.onnx.export(
        model, (x,), dynamo=True, input_names=["images"], output_names=["logits"], verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    assert program is not None
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def _torch_export(model: nn.Module, x: Tensor) -> Exported:
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue(), torch.export.load(io.BytesIO(buffer.getvalue())).module()


def _torchscript(model: nn.Module, x: Tensor) -> Exported:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.freeze(torch.jit.trace(model, x)), buffer)
    return buffer.getvalue(), torch.jit.load(io.BytesIO(buffer.getvalue()))


def _safetensors(model: nn.Module, x: Tensor) -> Exported:
    state = network_state(model)
    content = serialise({name: value.contiguous().clone() for name, value in state.items()})
    again = duplicate(model)
    again.load_state_dict(unpacked(again, deserialise(content)))
    return content, lambda x: answer(again, x)


FORMATS: dict[str, Callable[[nn.Module, Tensor], Exported]] = {
    "onnx": _onnx,
    "torch-export": _torch_export,
    "torchscript": _torchscript,
    "safetensors": _safetensors,
}
"""The formats by name."""

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "torchscript": ".pt", "safetensors": ".safetensors"}
"""The usual suffix of each format's files."""


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:  # exporters wrap it in pages of advice
        error = error.__cause__
    return first_line(error)[:200]
