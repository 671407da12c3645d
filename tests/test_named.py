"""User-defined parts by name, and the checksum of their source."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from advsphere import named
from advsphere.errors import UserError
from advsphere.objectives import TRADES


def test_what_has_a_name_is_found_by_it() -> None:
    for thing in (TRADES, torch.optim.AdamW, named.load, Path.read_text):
        assert named.load(str(named.name_of(thing))) is thing
    assert named.name_of(TRADES) == "advsphere.objectives:TRADES"


def test_what_has_none() -> None:
    class Local:
        pass

    for thing in (lambda: 0, Local, Local(), 3, TRADES()):
        assert named.name_of(thing) is None


@pytest.mark.parametrize(
    "text", ["resnet18", "timm:resnet18", "torchvision:resnet50", "C:\\nets", "s3://a/b", ":f", "a:"]
)
def test_what_is_no_name(text: str) -> None:
    assert not named.is_name(text)
    with pytest.raises(UserError, match="is not the name of an object"):
        named.load(text)


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere.at:all", "No module named"), ("torch:nothing", "no attribute 'nothing'"), ("broken:f", "ZeroDivision")],
)
def test_what_is_not_found_is_said_in_one_line(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=said) as caught:
        named.load(name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_the_checksum_is_of_the_user_s_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine_for_the_checksum.py"
    file.write_text("class Net:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    net = named.load("mine_for_the_checksum:Net")
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert named.source_checksum(net) == named.source_checksum(net()) == expected
    assert named.source_checksum("mine_for_the_checksum:Net") == expected
    for other in (TRADES, torch.optim.AdamW, Path, 3):
        assert named.source_checksum(other) is None


def test_a_call_gets_what_was_given_and_of_what_is_offered_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "load", lambda name: lambda width, num_classes=1: (width, num_classes))
    assert named.call("a:b", {"width": 3}, {"num_classes": 10, "image_size": 8}) == (3, 10)
    assert named.call("a:b", {"width": 3, "num_classes": 2}, {"num_classes": 10}) == (3, 2)
    with pytest.raises(UserError, match="could not be called: TypeError"):
        named.call("a:b", {"depth": 3}, {})
