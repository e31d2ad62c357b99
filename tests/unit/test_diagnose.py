"""Why a server ended, from logs of the form that vLLM 0.32.0 writes."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from berth.diagnose import KnownFailure, diagnose, explain_exit, read_log, redact

if TYPE_CHECKING:
    from pathlib import Path

MEMORY = KnownFailure(r"CUDA out of memory", "The model does not fit.", "Use more accelerators.")
ENGINE = KnownFailure(r"Engine core initialization failed", "The engine failed.", "Read the log.")
GENERAL = KnownFailure(r"deprecated", "Something is deprecated.", "Update it.")

VLLM_LOG = """\
INFO 11-24 03:51:02 [utils.py:233] this flag is deprecated
(EngineCore pid=12) INFO 11-24 03:51:12 [gpu_model_runner.py:1] Starting to load model
(EngineCore pid=12) ERROR 11-24 03:51:20 [core.py:900] EngineCore failed to start.
(EngineCore pid=12) ERROR 11-24 03:51:20 [core.py:900] Traceback (most recent call last):
(EngineCore pid=12) ERROR 11-24 03:51:20 [core.py:900] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GB
(APIServer pid=10) Traceback (most recent call last):
(APIServer pid=10)   File "api_server.py", line 1, in <module>
(APIServer pid=10) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def test_root_cause_wins_over_its_echo() -> None:
    """The engine's own error is the cause, not the parent's repetition, whatever the order of the table."""
    found = diagnose(VLLM_LOG, known_failures=[ENGINE, MEMORY], returncode=1)
    assert (found.cause, found.remedy) == (MEMORY.cause, MEMORY.remedy)
    assert found.line.endswith("CUDA out of memory. Tried 2 GB")
    assert found.tail.endswith("Failed core proc(s): {}")


def test_warnings_before_the_first_error_come_last() -> None:
    """A pattern that matches a harmless early line does not hide the one that matches the error."""
    assert diagnose(VLLM_LOG, known_failures=[GENERAL, MEMORY], returncode=1).cause == MEMORY.cause
    assert diagnose(VLLM_LOG, known_failures=[GENERAL], returncode=1).cause == GENERAL.cause


def test_unknown_failure_shows_the_error_that_is_no_echo() -> None:
    """Without a known failure the engine's exception and the exit code are told."""
    found = diagnose(VLLM_LOG, known_failures=[], returncode=1)
    assert found.cause == (
        "The server ended with exit code 1. The log says: torch.OutOfMemoryError: CUDA out of memory. Tried 2 GB"
    )


def test_errors_that_are_no_exceptions_are_told() -> None:
    """The message of an argument parser is found."""
    log = "usage: vllm serve [options]\nvllm: error: unrecognized arguments: --no-such-flag\n"
    found = diagnose(log, known_failures=[], returncode=2)
    assert "wrong arguments" in found.cause
    assert found.line == "vllm: error: unrecognized arguments: --no-such-flag"


def test_only_an_echo_is_better_than_nothing() -> None:
    """When the log holds nothing but the parent's repetition, that is told."""
    log = "RuntimeError: Engine core initialization failed. See root cause above."
    assert diagnose(log, known_failures=[], returncode=1).line == log


@pytest.mark.parametrize("returncode", [-signal.SIGKILL, 137])
def test_kill_is_explained(returncode: int) -> None:
    """SIGKILL is told as what it mostly is, also when it comes as a container's exit code."""
    found = diagnose("INFO all is well\n", known_failures=[], returncode=returncode)
    assert "ended by SIGKILL" in found.cause
    assert "out-of-memory killer" in found.cause
    assert "The log names no error." in found.cause
    assert "memory" in found.remedy


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (0, "asked to end"),
        (3, "exit code 3."),
        (127, "not found"),
        (254, "exit code 254."),
        (255, "Apptainer"),
        (-signal.SIGSEGV, "SIGSEGV: a crash in native code"),
        (143, "SIGTERM"),
        (None, "still runs"),
    ],
)
def test_exit_codes_in_words(returncode: int | None, words: str) -> None:
    """Every exit code becomes a sentence."""
    assert words in explain_exit(returncode)[0]


def test_huge_log_is_read_at_both_ends(tmp_path: Path) -> None:
    """Of a log of many megabytes the beginning and the end are read, and both can hold the cause."""
    log = tmp_path / "server.log"
    log.write_text("first line\n" + "INFO filler\n" * 1_000_000 + "ValueError: the last line\n")
    text = read_log(log)
    assert len(text) < 330 * 1024
    assert text.startswith("first line\n")
    assert diagnose(log, known_failures=[], returncode=1).line == "ValueError: the last line"


def test_earlier_servers_of_the_log_are_not_read(tmp_path: Path) -> None:
    """A log that several servers appended to is read from the present one on."""
    log = tmp_path / "server.log"
    log.write_text(VLLM_LOG)
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("ValueError: of the second server\n")
    assert diagnose(log, known_failures=[MEMORY], returncode=1, start=start).line == "ValueError: of the second server"


def test_missing_log_is_no_error(tmp_path: Path) -> None:
    """A server that died before it wrote anything still gets a diagnosis."""
    assert "SIGABRT" in diagnose(tmp_path / "none", known_failures=[MEMORY], returncode=-signal.SIGABRT).cause


def test_binary_rubbish_is_no_error(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 do not hide the cause."""
    log = tmp_path / "server.log"
    log.write_bytes(b"\xff\xfe\x00\nCUDA out of memory \xff\n")
    assert diagnose(log, known_failures=[MEMORY], returncode=1).cause == MEMORY.cause


def test_secrets_do_not_get_out() -> None:
    """No field of a diagnosis holds a secret, not even one that contains another."""
    log = "ValueError: key abcdef and abcdefgh are wrong\n"
    found = diagnose(log, known_failures=[], returncode=1, secrets=["abcdef", "abcdefgh"])
    assert found.line == "ValueError: key *** and *** are wrong"
    assert "abcdef" not in repr(found)


def test_redact_leaves_short_words_alone() -> None:
    """An empty or very short secret would only make the log unreadable."""
    assert redact("a token is a token", ["", "a", "token"]) == "a *** is a ***"
