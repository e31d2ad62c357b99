"""What the scripts of the workflow share: a log for people, and errors without a traceback."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from berth.errors import BerthError
from berth.signals import Terminated

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def script(log: str, *, kept: str = "every finished point is kept") -> Iterator[None]:
    """Log to the terminal and to a file; end with one message and an exit code on a BerthError or a signal.

    `kept` says what a signal leaves as it is.
    """
    path = Path(log)
    path.parent.mkdir(parents=True, exist_ok=True)
    formatter = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
    terminal, file = logging.StreamHandler(sys.stderr), logging.FileHandler(path)
    logger = logging.getLogger("berth")
    logger.setLevel(logging.INFO)
    for handler in (terminal, file):
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    try:
        yield
    except BerthError as error:
        logger.error("ERROR: %s", error)  # noqa: TRY400  # The message is written for its reader; a traceback hides it.
        sys.exit(1)
    except Terminated as asked:
        logger.warning("%s; %s", asked, kept)
        sys.exit(asked.exit_code)
    finally:
        for handler in (terminal, file):
            logger.removeHandler(handler)
            handler.close()
