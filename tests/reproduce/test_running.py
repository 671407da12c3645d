"""Running a plan: order, failures, and that it is the same in every place."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from advsphere.errors import UserError
from advsphere.recipes import recipe
from advsphere.reproduce.jobs import Job
from advsphere.reproduce.running import here, inside, log_of, on_ray, run


def job(name: str, folder: Path, *after: str, command: tuple[str, ...] = ("nothing",)) -> Job:
    return Job(name=name, command=command, made=folder / name, after=after, config=recipe("digits-fastat"))


class Place:
    """Where jobs end when they are told to."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.begun: list[str] = []
        self.running: list[tuple[Job, Future[int]]] = []

    def start(self, one: Job) -> Future[int]:
        future: Future[int] = Future()
        self.begun.append(one.name)
        self.running.append((one, future))
        self.most = max(getattr(self, "most", 0), len(self.running))
        if len(self.running) == 2 or one.name in ("d", "c"):
            self.end()
        return future

    def end(self) -> None:
        for one, future in self.running:
            if one.name != self.failing:
                one.made.write_text("")
            future.set_result(int(one.name == self.failing))
        self.running.clear()


def test_jobs_begin_after_those_they_need_and_as_many_at_once_as_allowed(tmp_path: Path) -> None:
    jobs = [job("a", tmp_path), job("b", tmp_path), job("c", tmp_path, "a", "b"), job("d", tmp_path, "c")]
    place = Place()
    assert run(jobs, place.start, at_once=2) == []
    assert place.begun == ["a", "b", "c", "d"] and place.most == 2
    again = Place()
    assert run(jobs, again.start, at_once=2) == [] and again.begun == [], "what is done is skipped"


def test_a_failure_is_named_and_stops_only_what_needs_it(tmp_path: Path) -> None:
    jobs = [job("a", tmp_path), job("b", tmp_path), job("c", tmp_path, "a"), job("d", tmp_path, "b")]
    place = Place(failing="a")
    ended: list[tuple[Job, bool]] = []
    assert run(jobs, place.start, at_once=2, on_end=lambda *told: ended.append(told)) == [jobs[0]]
    assert place.begun == ["a", "b", "d"] and {one.name: done for one, done in ended} == {
        "a": False,
        "b": True,
        "d": True,
    }


def test_a_job_that_ends_well_and_made_nothing_has_failed(tmp_path: Path) -> None:
    def start(one: Job) -> Future[int]:
        future: Future[int] = Future()
        future.set_result(0)
        return future

    assert len(run([job("a", tmp_path)], start, at_once=1)) == 1


def trained(folder: Path, name: str = "run") -> Job:
    out = folder / name
    command = ("train", "digits-fastat-he", "--epochs", "1", "--precision", "float32", "--resume", "--out", str(out))
    return Job(name=f"train {name}", command=command, made=out / "metrics.jsonl", config=recipe("digits-fastat-he"))


def metrics(one: Job) -> dict:
    (line,) = one.made.read_text().splitlines()
    return {key: value for key, value in json.loads(line).items() if "second" not in key}


def outcome(one: Job, start: Callable[[Job], Future[int]]) -> dict:
    assert run([one], start, at_once=1) == []
    return metrics(one)


def test_a_process_of_its_own_and_this_process_come_to_the_same(tmp_path: Path) -> None:
    from advsphere.cli import main

    with inside(main, tmp_path) as start:
        first = outcome(trained(tmp_path, "inside"), start)
    with here(1, tmp_path) as start:
        assert outcome(trained(tmp_path, "apart"), start) == first
        (failure,) = run([job("x", tmp_path)], start, at_once=1)
    assert "no command is called" in log_of(failure, tmp_path).read_text()


@pytest.mark.slow  # Ray takes a minute to start
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (the extra `ray`)")
def test_a_local_ray_comes_to_the_same(tmp_path: Path) -> None:
    with here(1, tmp_path) as start:
        first = outcome(trained(tmp_path, "here"), start)
    with on_ray(tmp_path) as start:
        jobs = [trained(tmp_path, "a"), trained(tmp_path, "b")]
        assert run(jobs, start, at_once=2) == []
        assert [metrics(one) for one in jobs] == [first, first]
        (failure,) = run([job("x", tmp_path, command=("train", "no-such"))], start, at_once=1)
    assert "no recipe is called" in log_of(failure, tmp_path).read_text()


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"advsphere\[ray\]"), on_ray(tmp_path):
        pass
