"""Use a trained network in ONNX Runtime, and attack a network that exists only as an ONNX file."""

from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import onnxruntime
import torch
from torch import Tensor

import advsphere as adv
from advsphere.attacks import square
from advsphere.classifier import fooled
from advsphere.deployment import export

folder = Path(mkdtemp())
adv.train(adv.recipe("digits-fastat-he"), folder / "run", epochs=3)
run = adv.load_run(folder / "run")
export(run.model, run.test.shape, folder / "digits.onnx", to="onnx")

session = onnxruntime.InferenceSession(folder / "digits.onnx", providers=["CPUExecutionProvider"])


def network(x: Tensor) -> Tensor:
    """The logits (B, K) of images (B, C, H, W) in [0, 1]. Attacks without gradients need nothing more."""
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


x, y = run.test.batch(torch.arange(200))
with torch.no_grad():
    assert torch.equal(network(x).argmax(1), run.model(x).argmax(1))
print(f"clean accuracy in ONNX Runtime: {(~fooled(network(x), y)).float().mean():.1%}")

# Transferred: found on the network in PyTorch, judged in ONNX Runtime. Directly: a search that only asks for logits.
threat = adv.ThreatModel(norm="linf", eps=0.1)
transferred = partial(adv.pgd, run.model, threat=threat, steps=20, step_size=0.02)(x, y)
direct = square(network, x, y, threat=threat, queries=200)
print(f"under PGD from PyTorch: {(~fooled(network(transferred), y)).float().mean():.1%}")
print(f"under Square in ONNX Runtime: {(~fooled(network(direct), y)).float().mean():.1%}")
