"""One spec, one image: what was measured already says which, where a recipe has no digest that would say so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from berth.errors import BerthError
from berth.record import read_record

if TYPE_CHECKING:
    from pathlib import Path

    from berth.coordinates import RunId


def require_same_image(results: Path, run: RunId, digest: str | None) -> None:
    """Return when no point of the run's spec, in results or in the spool, was measured with another image.

    A digest that nobody knows (None) is like any other.

    Raises:
        BerthError: one was; its curve would be of two images. It says which, and what to do.
    """
    if digest is None:
        return
    for folder in ("points", "spool"):
        runs = results / folder / run.experiment / run.platform / run.spec
        for path in sorted(runs.glob("run*/[cq]*.json")):
            measured = read_record(path)["server"]["image"]
            if measured["digest"] not in (None, digest):
                raise BerthError(
                    f"{path}: measured with {measured['reference']} at {measured['digest']}, and the image that is "
                    f"staged now is {digest}: the digest changed. Write one of the two into the recipe as `digest`: "
                    "the first goes on with this curve's image, the second begins another spec."
                )
