"""Accuracy under corruption: known answers, records that go on and are not to be changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advsphere.corruption import CORRUPTIONS, SEVERITIES, Corrupted, generated
from advsphere.corruption.evaluate import corruption_accuracy, recheck
from advsphere.corruption.result import ALEXNET, CorruptionCell, CorruptionRecord
from advsphere.data import Images, ImageSet
from advsphere.errors import UserError
from advsphere.evaluation import Progress
from advsphere.stats import mean_over_images


class Bright(nn.Module):
    """Class 1 where the mean of an image is above a threshold."""

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, x: Tensor) -> Tensor:
        above = 20 * (x.mean((1, 2, 3)) - self.threshold)
        return torch.stack((-above, above), 1)


LEVELS = torch.tensor([0, 40, 80, 110, 150, 180, 210, 250], dtype=torch.uint8)
CLEAN = ImageSet(LEVELS.view(-1, 1, 1, 1).repeat(1, 3, 32, 32), (LEVELS > 127).long(), ("dark", "light"), "greys")


def flipping() -> Corrupted:
    """Under "fog" severity s, the first s images are inverted, so that s of 8 are wrong; "contrast" changes nothing."""

    def load(name: str, severity: int) -> Images:
        pixels = CLEAN.pixels.clone()
        if name == "fog":
            pixels[:severity] = 255 - pixels[:severity]
        return replace(CLEAN, pixels=pixels, name=f"{name} {severity}")

    return Corrupted(("fog", "contrast"), {"kind": "made"}, load)


def measured(folder: Path, model: nn.Module | None = None) -> CorruptionRecord:
    return corruption_accuracy(model or Bright(), CLEAN, flipping(), record=folder / "r.json", batch_size=3)


def test_outcomes_and_means_are_as_known(tmp_path: Path) -> None:
    record = measured(tmp_path)
    assert record.clean.outcomes == "1" * 8
    assert [record.cell("fog", s).outcomes for s in SEVERITIES] == ["0" * s + "1" * (8 - s) for s in SEVERITIES]
    assert record.error("fog") == pytest.approx(3 / 8) and record.error("contrast") == 0
    assert record.counted == ("fog", "contrast")
    assert record.mca.value == pytest.approx(1 - 3 / 16)
    assert record.mca.low < record.mca.value < record.mca.high


def test_the_mean_is_over_images_and_its_interval_too() -> None:
    mean = mean_over_images([0.0, 0.5, 1.0, 0.5])
    half = 1.96 * (0.5 / 3) ** 0.5 / 2
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert not mean.cannot_tell and mean_over_images([0.1, -0.1, 0.2, -0.1]).cannot_tell


def of_errors(errors: dict[str, float], n: int = 1000) -> CorruptionRecord:
    """A record with these errors at every severity."""
    columns = {name: "0" * round(n * error) + "1" * (n - round(n * error)) for name, error in errors.items()}
    cells = [CorruptionCell(corruption=name, severity=s, outcomes=columns[name]) for name in errors for s in SEVERITIES]
    identity = {"data": {}, "corruptions": {"names": list(errors)}, "model": {}}
    return CorruptionRecord(identity=identity, clean=CorruptionCell(corruption="clean", severity=0, outcomes="1" * n),
                            cells=tuple(cells))  # fmt: skip


def test_mce_is_the_mean_of_the_ratios_of_errors() -> None:
    alexnet = of_errors({name: round(ALEXNET[name], 3) for name in CORRUPTIONS})
    assert alexnet.mce(ALEXNET) == pytest.approx(1, abs=1e-3)
    one, two = of_errors({"fog": 0.2, "frost": 0.6}), of_errors({"fog": 0.4, "frost": 0.5})
    assert one.mce(two) == pytest.approx((0.5 + 1.2) / 2)
    assert one.better_than(two).value == pytest.approx(0.05)
    with pytest.raises(UserError, match="no error for fog"):
        one.mce(of_errors({"fog": 0.0, "frost": 0.5}))
    with pytest.raises(UserError, match="can't be compared"):
        one.mce(of_errors({"fog": 0.4}))


def test_only_the_fifteen_enter_mca() -> None:
    record = of_errors({"fog": 0.2, "saturate": 0.8})
    assert record.counted == ("fog",) and record.mca.value == pytest.approx(0.8)
    with pytest.raises(UserError, match="none"):
        _ = of_errors({"saturate": 0.8}).mca


def test_a_severity_that_lacks_images_is_named(tmp_path: Path) -> None:
    """A folder of which a part was downloaded."""

    def load(name: str, severity: int) -> Images:
        images = flipping().load(name, severity)
        return images.first(7) if (name, severity) == ("contrast", 2) else images

    partly = Corrupted(("fog", "contrast"), {"kind": "made"}, load)
    with pytest.raises(UserError, match=r"contrast 2 has 7 images, fog 1 has 8: the download may be incomplete"):
        corruption_accuracy(Bright(), CLEAN, partly, record=tmp_path / "r.json", batch_size=3)


def test_an_interrupted_record_is_gone_on_with(tmp_path: Path) -> None:
    whole = measured(tmp_path)
    other = tmp_path / "other"
    seen: list[str] = []

    def stop(progress: Progress) -> None:
        seen.append(progress.attack)
        if progress.attack == "fog 4":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corruption_accuracy(Bright(), CLEAN, flipping(), record=other / "r.json", batch_size=3, on_progress=stop)
    part = CorruptionRecord.load(other / "r.json")
    assert not part.complete and len(part.cells) == 3
    with pytest.raises(UserError, match="fog 4 was not measured"):
        _ = part.mca
    seen.clear()
    again = corruption_accuracy(
        Bright(), CLEAN, flipping(), record=other / "r.json", batch_size=3, on_progress=lambda p: seen.append(p.attack)
    )
    assert seen[0] == "fog 4" and "clean" not in seen
    assert [c.outcomes for c in again.cells] == [c.outcomes for c in whole.cells]
    before = (other / "r.json").read_bytes()
    corruption_accuracy(Bright(), CLEAN, flipping(), record=other / "r.json", batch_size=3)
    assert (other / "r.json").read_bytes() == before


def test_a_record_of_something_else_is_not_gone_on_with(tmp_path: Path) -> None:
    measured(tmp_path)
    with pytest.raises(UserError, match=r"of another evaluation \(model.checksum"):
        measured(tmp_path, Bright(0.4))


def test_a_model_with_other_code_or_attributes_is_another_model(tmp_path: Path) -> None:
    """Their weights are the same, and so is the checksum of the weights."""

    class Inverted(Bright):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(1 - x)

    class Steep(Bright):
        sign = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return self.sign * super().forward(x)

    measured(tmp_path / "a")
    with pytest.raises(UserError, match="of another evaluation"):
        measured(tmp_path / "a", Inverted())
    measured(tmp_path / "b", Steep())
    other = Steep()
    other.sign = -1.0
    with pytest.raises(UserError, match="answers differently"):
        measured(tmp_path / "b", other)


def test_a_changed_record_is_no_evidence(tmp_path: Path) -> None:
    record = measured(tmp_path)
    path = tmp_path / "r.json"
    assert CorruptionRecord.load(path) == record
    text = path.read_text()
    for old, new in (('"outcomes": "01111111"', '"outcomes": "11111111"'), ('"clean": 1.0', '"clean": 0.9')):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match="was changed"):
            CorruptionRecord.load(path)
    path.write_text(json.dumps({"format": "other"}))
    with pytest.raises(UserError):
        CorruptionRecord.load(path)


def test_recheck_predicts_again(tmp_path: Path) -> None:
    record = measured(tmp_path)
    assert recheck(Bright(), flipping(), record) == [] == recheck(Bright(), flipping(), record, images=2)
    cells = tuple(replace(c, outcomes="1" * 8) if c.severity == 2 else c for c in record.cells)
    assert recheck(Bright(), flipping(), replace(record, cells=cells)) == ["fog 2: other outcomes"]
    dimmer = Corrupted(flipping().names, {}, lambda n, s: replace(CLEAN, pixels=flipping().load(n, s).stored(
        torch.arange(8))[0] // 2 * 2))  # fmt: skip
    assert "contrast 1: other pixels" not in recheck(Bright(), dimmer, record)  # even levels stay
    with pytest.raises(UserError, match="not the model"):
        recheck(Bright(0.4), flipping(), record)


def test_what_was_seen_is_what_is_generated(tmp_path: Path) -> None:
    first, second = (
        corruption_accuracy(Bright(), CLEAN, Corrupted(("fog",), {}, generated(CLEAN, seed=s).load),
                            record=tmp_path / f"{s}.json", batch_size=b)
        for s, b in ((0, 3), (1, 3))
    )  # fmt: skip
    assert first.cell("fog", 1).pixels != second.cell("fog", 1).pixels
