"""Before the server: the same container with the image's Python in the server's place, which reads the model.

It shows within a second or two what would otherwise end a server after minutes, or as an error of another kind: an
image that cannot be had or is half-written, a runtime that cannot start it, a mount or device that is refused, and a
model that is there for the user but not inside, as on a file system that distrusts root or behind SELinux.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from berth.diagnose import KnownFailure
from berth.errors import BerthError
from berth.serve import ServerDied, serve

if TYPE_CHECKING:
    from pathlib import Path

    from berth.serve import Launch

logger = logging.getLogger(__name__)

_POLL_S = 0.05
_SAY_EVERY_S = 30.0

# Runs in the image's Python, of any version. A model's folder may hold links; both ends must be there.
SCRIPT = """
import os, sys, tempfile
model, cache = sys.argv[1:]
def refuse(error):
    sys.exit("berth: unreadable: %s: %s" % (error.filename, error.strerror))
if not os.path.isdir(model):
    sys.exit("berth: unreadable: %s: not there" % model)
for where, _, names in os.walk(model, onerror=refuse):
    for name in names:
        try:
            open(os.path.join(where, name), "rb").read(1)
        except OSError as error:
            refuse(error)
try:
    tempfile.TemporaryFile(dir=cache).write(b"berth")
except OSError as error:
    sys.exit("berth: unwritable: %s: %s" % (cache, error.strerror))
"""

_KNOWN = (
    KnownFailure(
        r"berth: unreadable: ",
        "The container cannot read the model, although this user can.",
        "Give everybody the right to read it (chmod -R a+rX), and ask the site whether its file system maps root to "
        "nobody or carries SELinux labels; else set paths.models to a folder that containers may read.",
    ),
    KnownFailure(
        r"berth: unwritable: ",
        "The container cannot write into its cache folder.",
        "Set paths.scratch of the platform file to a local disk of the node on which this user may write.",
    ),
)


def try_container(launch: Launch, *, log_path: Path, token: str, known_failures: tuple[KnownFailure, ...]) -> None:
    """Return when the container ran SCRIPT to its end; an image that is missing is fetched by that.

    Raises:
        BerthError: cause and remedy, with the end of what it said.
    """
    started = time.monotonic()
    said = started
    with serve(
        launch, log_path=log_path, token=token, grace_s=1.0, known_failures=(*_KNOWN, *known_failures)
    ) as container:
        while container.alive():
            time.sleep(_POLL_S)
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                logger.info("waiting for the image of the server, %.0f s", said - started)
        failed: ServerDied | None = container.died() if container.returncode != 0 else None
    if failed is not None:
        raise BerthError(f"The server's container cannot be used on this node. {failed}")
    logger.info("container: starts and reads the model (%.1f s)", time.monotonic() - started)
