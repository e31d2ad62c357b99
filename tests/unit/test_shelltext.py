"""Text of shell scripts, judged by bash itself."""

from __future__ import annotations

import subprocess

import pytest

from berth.shelltext import comment, exports, must, quote, required, script, shown, variable


def bash(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("word", ["plain", "two words", "$HOME", "it's", '{"a": "`b`"}', "", "a\nb", "\\"])
def test_a_word_reaches_the_program_as_it_is(word: str) -> None:
    """Whatever stands in a word, bash hands over that word and nothing else."""
    assert bash(f"printf %s {quote(word)}", HOME="/expanded").stdout == word


def test_a_variable_is_replaced_and_the_text_around_it_is_not() -> None:
    """Only what was marked as a variable is one, and its value stays one word."""
    word = f"--name=$HOME {variable('NAME')}-client"
    assert bash(f"printf '<%s>' {quote(word)}", NAME="a b", HOME="/h").stdout == "<--name=$HOME a b-client>"
    assert shown(word) == "--name=$HOME ${NAME}-client"


def test_a_missing_variable_ends_the_script_without_its_value() -> None:
    """An empty secret ends the script and is named; one that is there is not shown."""
    text = script("set -euo pipefail\n", required(["KEY"], "is not set; export it"), "echo started\n")
    ended = bash(text, KEY="")
    assert ended.returncode != 0
    assert "KEY: is not set; export it" in ended.stderr
    assert ended.stdout == ""
    went_on = bash(text, KEY="s3cret")
    assert went_on.stdout == "started\n"
    assert "s3cret" not in went_on.stdout + went_on.stderr


def test_a_condition_that_fails_says_so_and_ends_the_script() -> None:
    """What must hold and does not is one line on stderr."""
    text = script("set -euo pipefail\n", must("[ -e /no/such ]", "it's not there: $HOME"), "echo started\n")
    ended = bash(text, HOME="/h")
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "it's not there: $HOME\n")


def test_exports_reach_programs() -> None:
    """An exported value is in the environment of what the script starts."""
    assert bash(exports({"A": "x y", "B": "'"}) + "printenv A B").stdout == "x y\n'\n"


def test_comments_are_wrapped_and_examples_are_not() -> None:
    """Prose is wrapped; a line that begins with a space stays whole, because people copy it."""
    lines = comment("word " * 60, "", "    " + "x" * 200).splitlines()
    assert len(lines) == 5
    assert all(line.startswith("#") and not line.endswith(" ") for line in lines)
    assert lines[-2:] == ["#", "#     " + "x" * 200]
