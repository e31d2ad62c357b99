"""YAML files checked against a JSON schema, with errors that name file, key, value and what is allowed."""

from __future__ import annotations

import difflib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Callable

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SCHEMA_DIR = Path(__file__).resolve().parents[2] / "workflow" / "schemas"


@functools.cache
def validator(name: str, schema_dir: Path = SCHEMA_DIR) -> Draft202012Validator:
    """The compiled schema `workflow/schemas/{name}.schema.yaml`, which the tests check: it takes a while."""
    return Draft202012Validator(load_yaml(schema_dir / f"{name}.schema.yaml"))


def nearest(word: str, allowed: list[str]) -> str:
    """A hint such as ' Did you mean "vllm"?', or an empty text when nothing is near."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f' Did you mean "{close[0]}"?' if close else ""


def load_yaml(path: Path) -> Any:
    """The value of a YAML file.

    Raises:
        BerthError: the file is absent or is no YAML.
    """
    try:
        return yaml.load(path.read_text(), Loader=_LOADER)  # noqa: S506  # A safe loader, the fast one where PyYAML has it.
    except FileNotFoundError:
        raise BerthError(f"{path}: no such file. Create it, or correct the name that refers to it.") from None
    except yaml.YAMLError as error:
        raise BerthError(f"{path}: not valid YAML: {error}") from None


def check(value: Any, schema: str, file: str) -> None:
    """Raise one BerthError for the most telling violation of a schema."""
    errors = list(validator(schema).iter_errors(value))
    if errors:
        raise BerthError(f"{file}: {_explain(_most_telling(errors))}")


def _most_telling(errors: list[ValidationError]) -> ValidationError:
    # A misspelt key is the cause of most other complaints, so it is told first.
    for error in errors:
        if error.validator == "additionalProperties":
            return error
    best = best_match(errors)
    return best if isinstance(best, ValidationError) else errors[0]


def _explain(error: ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path) or "the file"
    schema: dict[str, Any] = error.schema if isinstance(error.schema, dict) else {}
    hint = f" {schema['description']}" if schema.get("description") else ""
    explain = _EXPLANATIONS.get(str(error.validator))
    told = explain(error.instance, error.validator_value, schema) if explain else error.message
    return f"{where}: {told}{hint}"


def _unknown_key(instance: Any, _rule: Any, schema: dict[str, Any]) -> str:
    allowed = sorted(schema.get("properties", {}))
    unknown = min(set(instance) - set(allowed))
    return (
        f'unknown key "{unknown}".{nearest(unknown, allowed)} Allowed keys: {", ".join(allowed)}. Correct or remove it.'
    )


def _wrong_type(instance: Any, rule: Any, _schema: Any) -> str:
    wanted = rule if isinstance(rule, str) else " or ".join(rule)
    return f"{instance!r} has the wrong type; {wanted} is expected."


def _clash(instance: Any, _rule: Any, _schema: Any) -> str:
    return f"the keys {', '.join(sorted(map(str, instance)))} do not go together; see docs/configuration.md."


_EXPLANATIONS: dict[str, Callable[[Any, Any, dict[str, Any]], str]] = {
    "additionalProperties": _unknown_key,
    "required": lambda instance, rule, _: (
        f'the key "{next(key for key in rule if key not in instance)}" is missing. Add it.'
    ),
    "enum": lambda instance, rule, _: f"{instance!r} is not allowed. Use one of: {', '.join(map(str, rule))}.",
    "type": _wrong_type,
    "pattern": lambda instance, rule, _: f"{instance!r} does not match {rule}.",
    "minimum": lambda instance, rule, _: f"{instance!r} is too small; {rule} is the least that is allowed.",
    "not": _clash,
    "oneOf": _clash,
    "anyOf": _clash,
}
