"""Where the numbers of the table come from, one JSON file from the records: definitions, servers, doubts.

The report reads it beside the tidy table, so that it needs no record itself. A record's numbers stay in the table.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from berth.coordinates import RunId, level_of
from berth.errors import BerthError
from berth.fsio import write_json
from berth.record import read_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

SCHEMA = 1
_HIDDEN = "***"
# Names of settings whose values are secrets. They end so: "long-prefill-token-threshold" is a number.
_SECRET_NAME = re.compile(
    r"(?i)(?:^|[-_.])(?:api[-_]?keys?|access[-_]?key|private[-_]?key|secret|password|passwd|credentials?|token)$"
)
# Secrets that are known by their look: tokens of Hugging Face, GitHub, GitLab and OpenAI, AWS keys, bearer headers, and
# user:password in an address.
_SECRET_LOOK = re.compile(
    r"\bhf_[A-Za-z0-9]{8,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bglpat-[\w-]{16,}|\bsk-[\w-]{16,}|\bAKIA[0-9A-Z]{16}\b"
    r"|(?<=[Bb]earer )[\w.~+/-]{8,}=*|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


def write_provenance(records: Iterable[Path], failures: Iterable[Path], output: Path) -> None:
    """Write what the records of accepted points and of failures say about their origin.

    Raises:
        BerthError: a record cannot be read.
        OSError: as the file system says.
    """
    write_json(output, provenance(records, failures))


def read_provenance(path: Path) -> dict[str, Any]:
    """What `write_provenance` wrote.

    Raises:
        BerthError: the file is absent, or was not written by it.
    """
    try:
        value = json.loads(path.read_text())
        if value["schema"] == SCHEMA:
            return dict(value)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BerthError(f"{path}: no readable provenance ({error}). Delete it and make the report again.") from None
    raise BerthError(f"{path}: of schema {value['schema']!r}, not {SCHEMA}. Delete it and make the report again.")


def provenance(records: Iterable[Path], failures: Iterable[Path]) -> dict[str, Any]:
    """Definitions by spec, runs by key, and doubts by the point's key, each in the order of the keys.

    A point's failure counts only where the point has no record. Secrets are replaced by asterisks.
    """
    definitions: dict[str, Any] = {}
    runs: dict[str, dict[str, Any]] = {}
    doubts: dict[str, Any] = {}
    seen: set[str] = set()
    for path in (*records, *failures):
        record = read_record(path)
        point = record["point"]
        run = RunId(point["experiment"], point["platform"], point["spec"], point["run"])
        key = run.point(level_of(point)).key
        if key in seen:
            continue
        seen.add(key)
        if point["spec"] not in definitions:
            definitions[point["spec"]] = hide_secrets(record["spec"])
        _add_server(runs.setdefault(run.key, {"deployment": point.get("deployment"), "servers": []}), record)
        reasons = record["validity"].get("reasons") or []
        if reasons or record.get("failure"):
            doubts[key] = hide_secrets({"reasons": reasons, "failure": record.get("failure")})
    return {
        "schema": SCHEMA,
        "definitions": dict(sorted(definitions.items())),
        "runs": dict(sorted(runs.items())),
        "doubts": dict(sorted(doubts.items())),
    }


def _add_server(run: dict[str, Any], record: Mapping[str, Any]) -> None:
    """Note the server of a record, once for all its points."""
    server, client = record["server"], record["client"]
    identity = [server.get(name) for name in ("host", "job_id", "instance")]
    if any(known["identity"] == identity for known in run["servers"]):
        return
    run["servers"].append(
        {
            "identity": identity,
            **hide_secrets({name: server.get(name) for name in ("image", "version", "command", "nodes", "timeline")}),
            "client": hide_secrets({name: client.get(name) for name in ("name", "version", "mode", "command", "node")}),
        }
    )


def hide_secrets(value: Any, name: str = "") -> Any:
    """A JSON value whose secrets are asterisks: values of settings with such a name, and texts of such a look.

    Records hold none, because secrets go by environment; this is the second line of defence, for settings in which a
    user wrote one all the same.
    """
    if isinstance(value, dict):
        return {key: hide_secrets(each, str(key)) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return _hide_in_words(list(value), name)
    if isinstance(value, str):
        return _HIDDEN if value and _SECRET_NAME.search(name) else _hide_in_text(value)
    return value


def _hide_in_words(words: list[Any], name: str) -> list[Any]:
    """The list; in a command line, also what follows an option with a secret's name."""
    hidden: list[Any] = []
    option = ""
    for word in words:
        hidden.append(hide_secrets(word, option or name))
        option = word if isinstance(word, str) and word.startswith("-") and "=" not in word else ""
    return hidden


def _hide_in_text(text: str) -> str:
    setting, equals, value = text.partition("=")
    if equals and value and " " not in setting and _SECRET_NAME.search(setting):
        return f"{setting}={_HIDDEN}"
    return _SECRET_LOOK.sub(_HIDDEN, text)
