"""What holds for all tests."""

from __future__ import annotations

import signal

# A shell ignores INT in what it starts in the background, and every process of a test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
