"""User-defined parts by name, and the checksum of their source."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml

from advsphere import named
from advsphere.cli import main
from advsphere.errors import UserError
from advsphere.objectives import TRADES
from advsphere.recipes import recipe
from advsphere.runs.config import to_dict
from advsphere.runs.folder import read_config


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


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from somebody else, from which the user works. Importing its module leaves a trace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ADVSPHERE_TRUST_CODE", "")  # so that --trust-code is undone after the test
    (tmp_path / "evil.py").write_text("open('trace', 'w').close()\nbuild = steps = None\n")
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    return tmp_path


def test_code_that_a_file_names_runs_only_if_the_user_has_named_it(stranger: Path) -> None:
    for name in ("evil:build", "subprocess:getoutput", "torch.optim:AdamW", "builtins:eval", "nothing.there:x"):
        with pytest.raises(UserError, match=f"a file names {name} .* add --trust-code if you trust it"):
            named.require_trust([name, "cifar10", "timm:resnet18"], "a file")
    named.trust(["evil:build", "a plain text", "timm:resnet18"])
    named.require_trust(["evil:build"], "a file")
    with pytest.raises(UserError, match="names evil:other"):
        named.require_trust(["evil:other"], "a file")
    (stranger / "elsewhere").mkdir()
    (stranger / "elsewhere" / "evil.py").write_text("")
    os.chdir(stranger / "elsewhere")
    with pytest.raises(UserError, match=r"names evil:build \(.*elsewhere/evil.py\)"):
        named.require_trust(["evil:build"], "a file")
    assert not (stranger / "trace").exists()


def test_a_url_is_opened_only_if_the_user_has_named_it(stranger: Path) -> None:
    for url in ("ftp://host/images", "s3:/bucket/images"):
        with pytest.raises(UserError, match=url):
            named.require_trust([url], "a file")
        named.trust([url])
        named.require_trust([url, "C:/images", "data/images"], "a file")


def test_verify_runs_no_code_of_a_stranger_s_evaluation(
    stranger: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    content = {"run": None, "model": "evil:build", "data": "evil:photos"}
    for name in ("subject.json", "evaluation.json"):
        (stranger / name).write_text(json.dumps(content))
    assert main(["verify", "."]) == 1
    assert "subject.json names evil:build" in (said := capfd.readouterr().err) and "--trust-code" in said
    assert not (stranger / "trace").exists()
    assert main(["verify", ".", "--trust-code"]) == 1
    assert (stranger / "trace").exists()


@pytest.mark.parametrize(
    ("section", "key", "name"),
    [
        ("model", "name", "evil:build"),
        ("data", "name", "evil:build"),
        ("training", "optimizer", "evil:build"),
        ("objective", "kind", "evil:build"),
        ("data", "root", "ftp://host/images"),
    ],
)
def test_nor_does_reading_a_stranger_s_run(stranger: Path, section: str, key: str, name: str) -> None:
    settings = to_dict(recipe("digits-pgd-at"))
    settings[section][key] = name
    (stranger / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=f"config.yaml names {name}"):
        read_config(stranger)
    assert not (stranger / "trace").exists()
