"""Text of shell scripts: words with shell variables in them, exports, and checks that end a script with one line."""

from __future__ import annotations

import re
import shlex
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Characters of Unicode's private use area, which stand in no configuration.
_MARK = re.compile("\ue000([A-Za-z_][A-Za-z0-9_]*(?:\\[@\\])?)\ue001")


_WIDTH = 110


def variable(name: str) -> str:
    """A text that stands for a shell variable in what `quote` gets; it goes through templates and lists unharmed."""
    return f"\ue000{name}\ue001"


def words(name: str) -> str:
    """A text that stands for all words of a shell array, none where it is empty."""
    return variable(f"{name}[@]")


def quote(word: str) -> str:
    """One word of a shell, in which every `variable` is replaced when the script runs."""
    parts = _MARK.split(word)
    if len(parts) == 1:
        return shlex.quote(word)
    quoted = (f'"${{{part}}}"' if index % 2 else shlex.quote(part) if part else "" for index, part in enumerate(parts))
    return "".join(quoted)


def shown(word: str) -> str:
    """A text for people, with its variables as ${NAME}."""
    return with_variables(word, "${{{}}}")


def with_variables(word: str, form: str) -> str:
    """A text with its variables in another form, such as "$({})"."""
    return _MARK.sub(lambda match: form.format(match[1]), word)


def comment(*paragraphs: str) -> str:
    """Comment, wrapped; a paragraph that begins with a space is left as it is, and an empty one is an empty line."""
    lines: list[str] = []
    for paragraph in paragraphs:
        kept = paragraph.startswith(" ") or not paragraph
        lines += (
            [paragraph] if kept else textwrap.wrap(paragraph, _WIDTH, break_long_words=False, break_on_hyphens=False)
        )
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def script(*sections: str) -> str:
    """A bash script that ends at the first failure; empty sections are left out, the others are set apart."""
    return "\n".join(["#!/usr/bin/env bash", *(section.rstrip("\n") + "\n" for section in sections if section)])


def exports(values: Mapping[str, str]) -> str:
    """One `export NAME=VALUE` per line."""
    return "".join(f"export {name}={quote(value)}\n" for name, value in values.items())


def required(names: Iterable[str], why: str) -> str:
    """Ends the script where one of these variables is empty; no value is shown. `why` holds no quote and no dollar."""
    return "".join(f': "${{{name}:?{why}}}"\n' for name in names)


def must(condition: str, otherwise: str) -> str:
    """Ends the script with one line on stderr unless a condition holds."""
    return f"{condition} || {{\n  echo {quote(otherwise)} >&2\n  exit 1\n}}\n"
