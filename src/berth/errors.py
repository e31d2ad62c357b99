"""The one exception that a user is meant to read."""

from __future__ import annotations


class BerthError(Exception):
    """What went wrong and what to do about it, in plain sentences.

    Scripts print the message without a traceback and exit with 1. Any other exception is a defect of Berth and keeps
    its traceback.
    """
