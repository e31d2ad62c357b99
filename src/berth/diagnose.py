"""Why a server ended, said in plain words: from its log, its exit code and the recipe's table of known failures."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_HEAD_BYTES = 64 * 1024
_END_BYTES = 256 * 1024
_TAIL_LINES = 20
_SHORTEST_SECRET = 4

# Python ends a traceback with "name.of.SomeError: message"; vLLM puts its own prefixes before it.
_EXCEPTION = re.compile(r"(?:^|\s)((?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit): .*)$")
_ERROR = re.compile(r"\b(?:ERROR|FATAL|CRITICAL)\b|(?:^|\s)[Ee]rror: ")
_TROUBLE = re.compile(r"Traceback \(most recent call last\)|" + _ERROR.pattern)
# vLLM's parent process repeats that its child failed; the reason is in the child's lines.
_ECHO = re.compile(r"root cause above|EngineDeadError|Failed core proc|WorkerProc initialization failed")


@dataclass(frozen=True)
class KnownFailure:
    """A row of a recipe's table: a regular expression on one line of the log, its cause, and what to do about it."""

    pattern: str
    cause: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """Cause and remedy in sentences, the line of the log that told it ("" if none did), and the end of the log."""

    cause: str
    remedy: str
    line: str
    tail: str


def redact(text: str, secrets: Iterable[str]) -> str:
    """The text with every secret of at least four characters replaced by asterisks."""
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return text


def read_log(path: Path, *, start: int = 0) -> str:
    """The first 64 KiB and the last 256 KiB of a log from byte `start` on; "" for a log that is missing."""
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(start)
            if size - start <= _HEAD_BYTES + _END_BYTES:
                return handle.read(_HEAD_BYTES + _END_BYTES).decode(errors="replace")
            head = handle.read(_HEAD_BYTES)
            handle.seek(size - _END_BYTES)
            end = handle.read(_END_BYTES)
    except OSError:
        return ""
    return (head + b"\n[... left out ...]\n" + end).decode(errors="replace")


def diagnose(
    log: str | Path,
    *,
    known_failures: Sequence[KnownFailure],
    returncode: int | None,
    secrets: Iterable[str] = (),
    start: int = 0,
) -> Diagnosis:
    """Why a server ended, from its log (text, or a file read from byte `start` on) and its exit code.

    The earliest line that a known failure matches is the cause, first among the lines from the first error on, then
    among all. Without one it is the last error that does not merely repeat an earlier one, and the exit code.
    `returncode` is negative for a signal, as subprocess gives it, and None for a server that has not ended.
    """
    text = redact(read_log(log, start=start) if isinstance(log, Path) else log, secrets)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    tail = "\n".join(lines[-_TAIL_LINES:])
    first_trouble = next((index for index, line in enumerate(lines) if _TROUBLE.search(line)), 0)
    known = _first_known(lines[first_trouble:], known_failures) or _first_known(lines, known_failures)
    if known:
        failure, line = known
        return Diagnosis(failure.cause, failure.remedy, line, tail)
    ending, remedy = explain_exit(returncode)
    line = _last_error(lines)
    if not line:
        return Diagnosis(f"{ending} The log names no error.", remedy, "", tail)
    return Diagnosis(f"{ending} The log says: {line}", remedy, line, tail)


def explain_exit(returncode: int | None) -> tuple[str, str]:
    """(what an exit code means, what to do), each a sentence. Codes above 128 are signals, as shells and podman say."""
    read_the_log = "Read the log from its first error on."
    if returncode is None:
        return "The server still runs.", read_the_log
    signum = -returncode if returncode < 0 else returncode - 128
    if returncode < 0 or returncode > 128:
        try:
            name = signal.Signals(signum).name
        except ValueError:
            meaning, remedy = _CODES.get(returncode, ("", read_the_log))
            return f"The server ended with exit code {returncode}{meaning}.", remedy
        meaning, remedy = _SIGNALS.get(signum, ("", read_the_log))
        return f"The server was ended by {name}{meaning}.", remedy
    meaning, remedy = _CODES.get(returncode, ("", read_the_log))
    return f"The server ended with exit code {returncode}{meaning}.", remedy


_SIGNALS: dict[int, tuple[str, str]] = {
    signal.SIGKILL: (
        ": most often the kernel's out-of-memory killer or the memory limit of the job",
        "Ask for more host memory, or see `dmesg` and the job's accounting; also see whether somebody killed it.",
    ),
    signal.SIGTERM: (": it was asked to end", "See whether the scheduler's time limit or an operator ended it."),
    signal.SIGINT: (": it was interrupted", "Start it again."),
    signal.SIGSEGV: (
        ": a crash in native code",
        "See whether driver, accelerator and image fit each other, and report it to the server's project.",
    ),
    signal.SIGABRT: (": native code gave up", "Read the log's last lines: the reason stands just before the abort."),
    signal.SIGBUS: (
        ": memory that it mapped is gone or full, often /dev/shm",
        "Give the container more shared memory (--ipc=host or --shm-size).",
    ),
}

_CODES: dict[int, tuple[str, str]] = {
    0: (", which means that it was asked to end or had nothing to do", "See what asked it to end."),
    2: (", which most programs use for wrong arguments", "Compare the flags with those that this version knows."),
    125: (": the container runtime itself failed", "Run the same command by hand and read what the runtime says."),
    126: (": the program cannot be executed", "Check its permissions and that it fits this processor."),
    127: (": the program was not found", "Check the entrypoint of the recipe and the image."),
    255: (", as Apptainer does when it fails itself", "Run the same command by hand and read what Apptainer says."),
}


def _first_known(lines: Sequence[str], known: Sequence[KnownFailure]) -> tuple[KnownFailure, str] | None:
    patterns = [(re.compile(failure.pattern), failure) for failure in known]
    for line in lines:
        for pattern, failure in patterns:
            if pattern.search(line):
                return failure, line.strip()
    return None


def _last_error(lines: Sequence[str]) -> str:
    """The last exception of the log, else its last error line; repetitions of another process's error come last."""
    exceptions = [match[1] for line in lines if (match := _EXCEPTION.search(line))]
    errors = [line.strip() for line in lines if _ERROR.search(line)]
    candidates = [line for line in exceptions if not _ECHO.search(line)] or [
        line for line in errors if not _ECHO.search(line)
    ]
    return (candidates or exceptions or errors or [""])[-1]
