"""Hosts that are network namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hosts import Hosts, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Three hosts: a, b and c."""
    if why := unavailable():
        pytest.skip(why)
    with Hosts.up("a", "b", "c") as up:
        yield up
