"""A user's own prompts: one JSON object per line with `prompt` and, if wanted, `output_tokens`.

vLLM's client reads such a file as its `custom` dataset. It goes through pandas, which guesses types: a prompt of digits
becomes a number, and a length that one line lacks becomes NaN in that line. So Berth gives the client a copy that
holds these two keys alone, in every line.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from berth.errors import BerthError
from berth.fsio import sha256_file, sha256_text, write_text

if TYPE_CHECKING:
    from berth.config import Dataset

# vLLM's own default of --custom-output-len.
DEFAULT_OUTPUT_TOKENS = 256


def with_digest(dataset: Dataset, root: Path) -> Dataset:
    """The dataset with the SHA-256 of its file, where it is a user's own and does not say it.

    Raises:
        BerthError: the file is not there.
    """
    if dataset.source != "jsonl" or dataset.sha256:
        return dataset
    path = root / Path(dataset.path).expanduser()
    try:
        return replace(dataset, sha256=sha256_file(path))
    except OSError as error:
        raise BerthError(
            f"config/datasets/{dataset.name}.yaml: path: {path} cannot be read ({error.strerror}). Correct it (it is "
            "relative to the working directory), or give the file's sha256, with which points can be drawn without it."
        ) from None


def check_dataset(dataset: Dataset, root: Path) -> None:
    """Do nothing if a dataset is no user's own file, or all of its lines can be sent.

    Raises:
        BerthError: as read_lines().
    """
    if dataset.source == "jsonl":
        read_lines(root / Path(dataset.path).expanduser(), dataset.sha256, dataset.output_tokens)


def copy_jsonl(source: Path, dest: Path, receipt_path: Path, *, sha256: str, output_tokens: int) -> dict[str, Any]:
    """Write the lines of `source` to `dest` as the client is to read them, and return the receipt.

    `output_tokens` is the length of answers in lines that say none.

    Raises:
        BerthError: as read_lines().
    """
    # Every job of Snakemake imports this module, and few of them the libraries of datasets.
    from berth.dataset import write_receipt  # noqa: PLC0415

    lines = read_lines(source.expanduser(), sha256, output_tokens)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    receipt_path.unlink(missing_ok=True)
    write_text(dest, text)
    told = {"kind": "jsonl", "path": str(source), "sha256": sha256, "lines": len(lines)}
    return write_receipt(dest, receipt_path, told, sha256_text(text), None)


def read_lines(path: Path, sha256: str, output_tokens: int) -> list[dict[str, Any]]:
    """`prompt` and `output_tokens` of each line; empty lines are left out.

    Raises:
        BerthError: not there, another SHA-256, no UTF-8, no line at all, or a line that is no JSON object with a text
            as its prompt and a positive number of output tokens.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BerthError(f"{path}: cannot be read ({error.strerror}). Correct `path` of the dataset.") from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise BerthError(
            f"{path}: its SHA-256 is {found}, and {sha256} is expected: it is another file, and another "
            "dataset. Correct `sha256` of the dataset, or start Snakemake again if the file was edited meanwhile."
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BerthError(f"{path}: not UTF-8 ({error}). Convert it.") from None
    # Not splitlines(): a JSON text may hold the line ends of Unicode as they are.
    lines = [
        _line(f"{path}:{number}", line, output_tokens)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not lines:
        raise BerthError(f'{path}: no line. Each line is a JSON object such as {{"prompt": "Why is the sky blue?"}}.')
    return lines


def _line(where: str, line: str, output_tokens: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise BerthError(f"{where}: not JSON ({error}). Each line of the file is one JSON object.") from None
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise BerthError(f'{where}: no "prompt" with a text. Each line is a JSON object such as {{"prompt": "Why?"}}.')
    tokens = value.get("output_tokens")
    if tokens is None:
        tokens = output_tokens
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise BerthError(f"{where}: output_tokens: {tokens!r} is not allowed. Use a whole number from 1 on, or none.")
    return {"prompt": prompt, "output_tokens": tokens}
