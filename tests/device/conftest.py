"""The stand-in device is registered where the tests of it run, not where they are collected."""

from __future__ import annotations

import pytest

from tests.device import stand_in


@pytest.fixture(scope="session", autouse=True)
def device():
    return stand_in.install()
