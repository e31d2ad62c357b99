"""ShareGPT: the real file from a hub, or an embedded one whose lengths are ShareGPT's; and prompts of random tokens.

The first two are JSON lists of `{"id", "conversations": [{"from", "value"}, ...]}`, of which vLLM's ShareGPTDataset
takes the first value as the prompt and counts the tokens of the second to get the length of the answer. Beside each
goes a receipt: `{"schema": 1, "source", "path", "size", "sha256", "distribution"}`, written last.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from dataclasses import asdict
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from berth import lengths
from berth.disk import require_space
from berth.errors import BerthError
from berth.fsio import fsync_dir, sha256_file, sha256_text, write_json, write_text
from berth.hub import download_files, hub_repo, list_files
from berth.model import check_file
from berth.tinymodel import build_tokenizer, word_tokens

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

SCHEMA = 1
SHAREGPT_REPO = "anon8231489123/ShareGPT_Vicuna_unfiltered"
SHAREGPT_FILE = "ShareGPT_V3_unfiltered_cleaned_split.json"
# The commit and the SHA-256 that many public projects pin; docs/dataset.md says how sure that is.
SHAREGPT_REVISION = "192ab2185289094fc556ec8ce5ce1e8e587154ca"
SHAREGPT_SHA256 = "35f0e213ce091ed9b9af2a1f0755e9d39f9ccec34ab281cd4ca60d70f6479ba4"

_MIN_WORDS = 50
_BOOKKEEPING_BYTES = 1_000_000


def fetch_sharegpt(
    *,
    dest: Path,
    receipt_path: Path,
    repo: str = SHAREGPT_REPO,
    filename: str = SHAREGPT_FILE,
    revision: str = SHAREGPT_REVISION,
    sha256: str = SHAREGPT_SHA256,
    endpoint: str | None = None,
    token_env: str = "HF_TOKEN",  # noqa: S107 - the name of a variable
) -> dict[str, Any]:
    """Download one file of a dataset repository to `dest`, check its SHA-256, and return the receipt.

    A file that is there with that SHA-256 is kept, and the hub is then not asked.

    Raises:
        BerthError: the hub's errors (see berth.hub), no such file, or another SHA-256; `dest` is then absent.
    """
    hub = hub_repo(repo, revision, repo_type="dataset", endpoint=endpoint, token_env=token_env)
    source = {"kind": "hub", "repo": repo, "revision": revision, "file": filename}
    if not (dest.is_file() and sha256_file(dest) == sha256):
        listed = list_files(hub).get(filename)
        if listed is None:
            raise BerthError(f"{hub.label} has no file {filename}: check the dataset's `filename` and `revision`.")
        if listed.lfs_sha256 not in (None, sha256):
            raise _other_checksum(f"{hub.page} lists {filename} at {revision}", str(listed.lfs_sha256), sha256)
        receipt_path.unlink(missing_ok=True)
        folder = dest.with_name(f".{dest.name}.download")
        require_space(folder, listed.size_bytes + _BOOKKEEPING_BYTES, f"The {hub.label}")
        download_files(hub, [listed], folder, max_workers=1)
        found, reason = check_file(folder / filename, listed)
        if reason is None and found == sha256:
            (folder / filename).replace(dest)
        # What is wrong would be taken for whole the next time, so it goes as well.
        shutil.rmtree(folder)
        if reason is not None:
            raise BerthError(f"{hub.label}: {filename} {reason}. It was deleted; run again.")
        if found != sha256:
            raise _other_checksum(f"{filename} of the {hub.label}", found, sha256)
        fsync_dir(dest.parent)
    return write_receipt(dest, receipt_path, source, sha256, None)


def _other_checksum(what: str, found: str, expected: str) -> BerthError:
    return BerthError(
        f"{what} with SHA-256 {found}, and the configuration expects {expected}: it is another file. "
        "Check `revision` and `sha256` of the dataset."
    )


def generate_sharegpt(
    *,
    dest: Path,
    receipt_path: Path,
    count: int,
    seed: int = 0,
    tokenizer_file: Path | None = None,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Write `count` invented conversations with ShareGPT's token lengths to `dest` and return the receipt.

    Tokens are those of `tokenizer_file` (the tokenizer.json of a model with a byte-level BPE tokenizer), else of the
    generated model with seed 0, counted as vLLM's client counts them, with the token that begins a text. `scale`
    shortens both lengths, for a demonstration on a laptop. The same arguments give the same bytes.

    Raises:
        BerthError: a number out of range, or a tokenizer that texts of exact length cannot be made for.
    """
    if count < 1 or not 0 < scale <= 1:
        raise BerthError(f"Dataset: count is {count} (at least 1), scale is {scale} (above 0, at most 1).")
    tokenizer = build_tokenizer() if tokenizer_file is None else _read_tokenizer(tokenizer_file)
    pairs = lengths.draw_lengths(count, seed, scale)
    rows = _conversations(tokenizer, pairs, seed)
    text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"
    source = {"kind": "generate", "seed": seed, "count": count, "tokenizer_sha256": sha256_text(tokenizer.to_str())}
    distribution = {
        "form": "truncated lognormal",
        "prompt": asdict(lengths.PROMPT),
        "answer": asdict(lengths.ANSWER),
        "scale": scale,
        "tokens": {
            "prompt": lengths.summary([prompt for prompt, _ in pairs]),
            "answer": lengths.summary([answer for _, answer in pairs]),
        },
    }
    digest = sha256_text(text)
    if not (dest.is_file() and sha256_file(dest) == digest):
        receipt_path.unlink(missing_ok=True)
        write_text(dest, text)
    return write_receipt(dest, receipt_path, source, digest, distribution)


def write_random(dest: Path, receipt_path: Path, lengths_tokens: dict[str, int]) -> dict[str, Any]:
    """Write the lengths of random prompts to `dest` and return the receipt: the client draws the tokens itself."""
    text = json.dumps(lengths_tokens, indent=2) + "\n"
    receipt_path.unlink(missing_ok=True)
    write_text(dest, text)
    return write_receipt(dest, receipt_path, {"kind": "random", **lengths_tokens}, sha256_text(text), None)


def write_receipt(
    dest: Path, receipt_path: Path, source: dict[str, Any], sha256: str, distribution: dict[str, Any] | None
) -> dict[str, Any]:
    """Write and return the receipt of the dataset's file at `dest`."""
    receipt = {
        "schema": SCHEMA,
        "source": source,
        "path": dest.name,
        "size": dest.stat().st_size,
        "sha256": sha256,
        "distribution": distribution,
    }
    write_json(receipt_path, receipt)
    logger.info("The dataset %s is complete (%d bytes).", dest, receipt["size"])
    return receipt


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises bare Exception, also for a missing file.
        raise BerthError(f"{path} cannot be read as a tokenizer.json ({error}): check the model.") from error


def _conversations(tokenizer: Tokenizer, pairs: list[tuple[int, int]], seed: int) -> list[dict[str, Any]]:
    write = _Writer(tokenizer, seed)
    rows = []
    for number, (prompt, answer) in enumerate(pairs):
        turns = [{"from": "human", "value": write.text(prompt)}, {"from": "gpt", "value": write.text(answer)}]
        rows.append({"id": f"berth_{number}", "conversations": turns})
    return rows


class _Writer:
    """Texts of an exact number of tokens, made of words that are one token each, common ones more often."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        words = [str(tokenizer.id_to_token(token))[1:] for token in word_tokens(tokenizer)]
        # A text begins with a word without a space before it, which is another token, or several.
        first = [word for word in words if len(tokenizer.encode(word, add_special_tokens=False).ids) == 1]
        if len(words) < _MIN_WORDS or not first:
            raise BerthError(
                f"Dataset: this tokenizer has {len(words)} words that are one token; use a byte-level BPE tokenizer."
            )
        self._tokenizer, self._words, self._first = tokenizer, words, first
        self._weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
        self._overhead = len(tokenizer.encode("").ids)
        # Another stream than that of the lengths, so that the words do not depend on their number.
        self._rng = random.Random(f"words {seed}")

    def text(self, tokens: int) -> str:
        """A text of so many tokens, with those that the tokenizer adds.

        Raises:
            BerthError: the tokenizer counts the text otherwise.
        """
        rest = self._rng.choices(self._words, cum_weights=self._weights, k=tokens - self._overhead - 1)
        text = " ".join([self._rng.choice(self._first), *rest])
        found = len(self._tokenizer.encode(text).ids)
        if found != tokens:
            raise BerthError(
                f"Dataset: this tokenizer counts {found} tokens where {tokens} were written: texts of exact length "
                "need a byte-level BPE tokenizer (such as that of Llama 3, Qwen, or the generated model)."
            )
        return text
