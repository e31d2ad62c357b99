"""What a sweep looks at on its node before it starts a server; with containers: tests/integration/test_sweep_*.py."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from berth.errors import BerthError
from berth.nodecheck import check_readable

if TYPE_CHECKING:
    from pathlib import Path


def test_a_model_that_can_be_read_passes(tmp_path: Path) -> None:
    """Folders below the model's own are looked into, and nothing is changed."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below/weights").write_bytes(b"x")
    check_readable(tmp_path)


def test_a_file_that_is_not_behind_its_link_is_named(tmp_path: Path) -> None:
    """A link into a cache that this node does not have is told with its path."""
    (tmp_path / "weights").symlink_to(tmp_path / "gone")
    with pytest.raises(BerthError, match=r"weights: cannot be read on .*: No such file or directory\..*chmod"):
        check_readable(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["weights", "below"])
def test_what_this_user_may_not_read_is_named(tmp_path: Path, name: str) -> None:
    """A file or a folder of somebody else is told before a server fails on it."""
    (tmp_path / "below").mkdir()
    (tmp_path / "weights").touch()
    (tmp_path / name).chmod(0)
    try:
        with pytest.raises(BerthError, match=rf"{name}: cannot be read on .*: Permission denied"):
            check_readable(tmp_path)
    finally:
        (tmp_path / name).chmod(0o700)
