"""The command line: `advsphere COMMAND ...`. Each command parses its arguments, calls the library and prints."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import advsphere
from advsphere.cli.printing import print_error
from advsphere.errors import in_one_line, needs

COMMANDS = {
    "demo": "train plain and hyperspherical networks on the digits, attack both, write report.html (about a minute)",
    "recipes": "list the training recipes: the rows of the paper's tables, and small ones",
    "train": "train a recipe and keep the run in a folder; --he adds hypersphere embedding to any of them",
    "evaluate": "attack a run or your own model, and print its robust accuracy with intervals",
    "compare": "attack a baseline and a method in the same way, and say how much of the gain remains",
    "diagnose": "examine a network: gradients, angles, pictures, and the four claims of the paper",
    "report": "write one HTML page about runs and their evaluations: verdict, tables, curves, pictures, provenance",
    "corruptions": "measure accuracy under common corruptions (CIFAR-10-C, ImageNet-C), generated or loaded",
    "reproduce": "reproduce a table of the paper: train and attack its networks, print each cell beside the paper's",
    "verify": "check an evaluation: recompute its numbers, re-predict its examples, attack a sample again",
    "show": "show one example: every attack on it, its picture, and the command that repeats an attack",
    "predict": "classify photos with the network of a run",
    "export": "write the network of a run for other tools: ONNX, torch.export, TorchScript, Hugging Face",
    "results": "store measured results in a file, and make tables from it",
}

CONTINUE = ("demo", "evaluate", "compare", "reproduce")
"""Commands that continue after an interruption when the same command is run again."""

ALONE = ("demo", "recipes")
"""Commands that need no arguments. The others explain themselves without any."""

USAGE = """usage: advsphere COMMAND [ARGUMENTS] [--device NAME] [--trust-code]
       advsphere --version

{commands}

Every command runs on the GPU if there is one; --device cpu or --device cuda:1 names another device.
A run or evaluation that somebody sent may name code. It is run only with --trust-code, or if you have used it before.
`advsphere COMMAND --help` explains a command. Start with `advsphere demo`, then
`advsphere train digits-pgd-at-he --out runs/first` and `advsphere evaluate runs/first`."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command. The exit status is 0 for success, 1 for a user's mistake (printed in one line), 2 for unknown
    arguments and 130 after an interruption.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows question marks
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        again = "; the same command continues from here" * any(name in CONTINUE for name in arguments[:1])
        print(f"interrupted{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        return 0
    except Exception as error:
        command = next(iter(arguments), "")
        said = in_one_line(error, sized=command not in COMMANDS or "--batch-size" in help_of(command))
        if said is None:
            raise
        print_error(said)
        return 1


def _run(arguments: list[str]) -> int:
    arguments, device = taken(arguments, "--device")
    if device is not None:
        os.environ["ADVSPHERE_DEVICE"] = device  # processes that a command starts use it too
    if "--trust-code" in arguments:
        arguments = [word for word in arguments if word != "--trust-code"]
        os.environ["ADVSPHERE_TRUST_CODE"] = "1"
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(commands="\n".join(f"  {name:<11} {what}" for name, what in COMMANDS.items())))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"advsphere {advsphere.__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        print(f"advsphere: no command is called {name!r}; {hint}choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if (not rest and name not in ALONE) or (rest and rest[0] in ("-h", "--help")):
        print(help_of(name), end="")
        return 0 if rest else 2
    needs("train", "tyro")
    limit_threads()
    # A command's module is imported only when it is called, so that `--help` does not wait for torch.
    command: Callable[[list[str]], int] = importlib.import_module(f"advsphere.cli.{name}").main
    return command(rest)


def taken(arguments: list[str], flag: str) -> tuple[list[str], str | None]:
    """Split the arguments into all but one flag, and the value of that flag."""
    for i, word in enumerate(arguments):
        if word == flag and i + 1 < len(arguments):
            return arguments[:i] + arguments[i + 2 :], arguments[i + 1]
        if word.startswith(f"{flag}="):
            return arguments[:i] + arguments[i + 1 :], word.partition("=")[2]
    return arguments, None


def help_of(command: str) -> str:
    """What `advsphere COMMAND --help` prints. It is stored, so that nobody waits for torch to read it: the files of
    train and recipes are written by hand, the others by `python -m tests.cli.help_texts --write` from the flags.
    """
    return (Path(__file__).parent / "help" / f"{command}.txt").read_text(encoding="utf-8")


CONTROL = Path("/sys/fs/cgroup")
"""Where Linux keeps the limits of a container."""


def limit_threads() -> None:
    """Use as many threads as the container may use cores, unless OMP_NUM_THREADS says otherwise.

    PyTorch takes one for each core of the machine, and more than are granted wait for each other most of the time. It
    reads the variable when it is imported.
    """
    cores = granted()
    if cores is not None and cores < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(cores))))


def granted() -> float | None:
    """The cores that Linux grants to this container, None without a limit."""
    for quota_and_period in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # version 2, version 1
        try:
            quota, period = " ".join((CONTROL / name).read_text() for name in quota_and_period).split()
            return int(quota) / int(period) if int(quota) > 0 else None
        except (OSError, ValueError):  # there is no such file, or the quota is "max"
            continue
    return None
