from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from berth.disk import free_bytes, full_disk_error, human_bytes, is_disk_full, require_space
from berth.errors import BerthError

if TYPE_CHECKING:
    from pathlib import Path


def test_space_that_is_there_is_accepted(tmp_path: Path) -> None:
    """A small need on a disk with room passes, also where the directory does not exist yet."""
    require_space(tmp_path / "a" / "b", 1, "The model")
    assert free_bytes(tmp_path / "a" / "b") > 1


def test_missing_space_is_named_with_place_and_amount(tmp_path: Path) -> None:
    """The error names what needs the room, where, and how much has to be freed."""
    needed = free_bytes(tmp_path) + 5 * 10**15
    with pytest.raises(BerthError, match=r"The model x/y needs .* PB at .*: free 5\.0 PB there"):
        require_space(tmp_path, needed, "The model x/y")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (999_960, "1.0 MB"), (812_400_000_000, "812.4 GB")]
)
def test_sizes_are_readable(size: int, text: str) -> None:
    """Sizes are in powers of 1000, as disks and the hub count them."""
    assert human_bytes(size) == text


def test_a_full_disk_is_recognised_through_wrapping_exceptions() -> None:
    """ENOSPC and EDQUOT count, also as the cause of another exception; other errors do not."""
    wrapped = RuntimeError("download failed")
    wrapped.__cause__ = OSError(errno.EDQUOT, "quota")
    assert is_disk_full(OSError(errno.ENOSPC, "full"))
    assert is_disk_full(wrapped)
    assert not is_disk_full(OSError(errno.EACCES, "no"))
    assert not is_disk_full(None)


def test_the_error_for_a_disk_that_filled_up_says_what_to_do(tmp_path: Path) -> None:
    """The message names the place and that finished files are kept."""
    assert "what is already whole is kept" in str(full_disk_error(tmp_path, "the model"))
