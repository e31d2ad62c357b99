from __future__ import annotations

import hashlib
import json
import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from berth import lengths
from berth.dataset import generate_sharegpt
from berth.errors import BerthError
from berth.tinymodel import build_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

# The published log of the paper's client: 230,398 input and about 182,000 output tokens for 1000 prompts.
PAPER_MEAN_PROMPT = 230.4
PAPER_MEAN_ANSWER = 182.2
# Median over mean of 100 requests that vLLM's client sampled of ShareGPT (docs/dataset.md).
SAMPLED_PROMPT_RATIO = 141.5 / 232.6
SAMPLED_ANSWER_RATIO = 164.5 / 220.61


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    build_tokenizer(seed=3, vocab_size=2048).save(str(path))
    return path


def make(root: Path, tokenizer_file: Path, **changes: Any) -> dict[str, Any]:
    options = {"count": 40, "seed": 7, "tokenizer_file": tokenizer_file} | changes
    return generate_sharegpt(dest=root / "sharegpt.json", receipt_path=root / "receipt.json", **options)


def test_a_big_sample_has_the_papers_means() -> None:
    """20,000 drawn conversations have the mean prompt and answer length of the paper's runs within 2 %."""
    pairs = lengths.draw_lengths(20_000, seed=1)
    assert lengths.summary([p for p, _ in pairs])["mean"] == pytest.approx(PAPER_MEAN_PROMPT, rel=0.02)
    assert lengths.summary([a for _, a in pairs])["mean"] == pytest.approx(PAPER_MEAN_ANSWER, rel=0.02)


def test_the_tail_is_long_and_the_median_is_as_sampled() -> None:
    """Median over mean is that of the sampled requests within 3 %, and the longest reach the client's limits."""
    pairs = lengths.draw_lengths(20_000, seed=2)
    prompt = lengths.summary([p for p, _ in pairs])
    answer = lengths.summary([a for _, a in pairs])
    assert prompt["median"] / prompt["mean"] == pytest.approx(SAMPLED_PROMPT_RATIO, rel=0.03)
    assert answer["median"] / answer["mean"] == pytest.approx(SAMPLED_ANSWER_RATIO, rel=0.03)
    assert prompt["p99"] > 4 * prompt["mean"]
    assert answer["p99"] > 4 * answer["mean"]


def test_no_length_is_outside_what_vllms_client_accepts() -> None:
    """Prompts of 4 to 1024 tokens, answers of at least 4, at most 2048 together: none would be dropped."""
    for prompt, answer in lengths.draw_lengths(20_000, seed=3):
        assert 4 <= prompt <= 1024
        assert answer >= 4
        assert prompt + answer <= 2048


@pytest.mark.parametrize(
    ("shape", "mean", "ratio", "high"),
    [
        (lengths.PROMPT, PAPER_MEAN_PROMPT, SAMPLED_PROMPT_RATIO, 1024),
        (lengths.ANSWER, PAPER_MEAN_ANSWER, SAMPLED_ANSWER_RATIO, 2048 - 230),
    ],
)
def test_the_constants_are_the_fit_that_the_documentation_states(
    shape: lengths.Lognormal, mean: float, ratio: float, high: int
) -> None:
    """Solving again for the mean and the median gives the two parameters of each length."""

    def curve(mu: float, sigma: float) -> tuple[float, float]:
        normal = NormalDist()
        low, top = (normal.cdf((math.log(edge) - mu) / sigma) for edge in (3.5, high + 0.5))
        points = [
            math.exp(mu + sigma * normal.inv_cdf(low + (top - low) * (index + 0.5) / 999)) for index in range(999)
        ]
        return sum(points) / len(points), points[499]

    def mu_for(sigma: float) -> float:
        below, above = 0.0, 9.0
        for _ in range(25):
            middle = (below + above) / 2
            below, above = (middle, above) if curve(middle, sigma)[0] < mean else (below, middle)
        return below

    below, above = 0.3, 3.0
    for _ in range(20):
        sigma = (below + above) / 2
        below, above = (sigma, above) if curve(mu_for(sigma), sigma)[1] > mean * ratio else (below, sigma)
    assert below == pytest.approx(shape.sigma, rel=0.02)
    assert mu_for(below) == pytest.approx(shape.mu, rel=0.01)


def test_a_small_dataset_has_the_means_too() -> None:
    """Because every part of the distribution is drawn once, 200 conversations already match within 5 %."""
    pairs = lengths.draw_lengths(200, seed=4)
    assert lengths.summary([p for p, _ in pairs])["mean"] == pytest.approx(PAPER_MEAN_PROMPT, rel=0.05)
    assert lengths.summary([a for _, a in pairs])["mean"] == pytest.approx(PAPER_MEAN_ANSWER, rel=0.05)


def test_scale_shortens_both_lengths_and_keeps_them_valid() -> None:
    """A tenth of the length is a tenth of the mean within 5 %, and nothing gets too short for the client."""
    pairs = lengths.draw_lengths(5_000, seed=5, scale=0.1)
    assert lengths.summary([p for p, _ in pairs])["mean"] == pytest.approx(PAPER_MEAN_PROMPT / 10, rel=0.05)
    assert lengths.summary([a for _, a in pairs])["mean"] == pytest.approx(PAPER_MEAN_ANSWER / 10, rel=0.05)
    assert min(min(pair) for pair in pairs) == 4


def test_texts_have_exactly_the_drawn_number_of_tokens(tmp_path: Path, tokenizer_file: Path) -> None:
    """The tokenizer counts, with the token that begins a text, what the receipt says was drawn."""
    receipt = make(tmp_path, tokenizer_file)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    rows = json.loads((tmp_path / "sharegpt.json").read_text())
    counted = [tuple(len(tokenizer.encode(turn["value"]).ids) for turn in row["conversations"]) for row in rows]
    assert counted == lengths.draw_lengths(40, seed=7)
    assert receipt["distribution"]["tokens"]["prompt"] == lengths.summary([p for p, _ in counted])


def test_the_format_is_that_of_sharegpt(tmp_path: Path, tokenizer_file: Path) -> None:
    """Each entry has an id and two turns, human and gpt, as vLLM's reader takes them; no prompt comes twice."""
    make(tmp_path, tokenizer_file)
    rows = json.loads((tmp_path / "sharegpt.json").read_text())
    assert {tuple(turn["from"] for turn in row["conversations"]) for row in rows} == {("human", "gpt")}
    assert len({row["id"] for row in rows}) == len({row["conversations"][0]["value"] for row in rows}) == 40


def test_the_receipt_describes_the_file(tmp_path: Path, tokenizer_file: Path) -> None:
    """Schema, source, name, size, SHA-256 and distribution are those of what was written."""
    receipt = make(tmp_path, tokenizer_file, scale=0.5)
    content = (tmp_path / "sharegpt.json").read_bytes()
    assert json.loads((tmp_path / "receipt.json").read_text()) == receipt
    assert receipt["schema"] == 1
    assert receipt["path"] == "sharegpt.json"
    assert receipt["size"] == len(content)
    assert receipt["sha256"] == hashlib.sha256(content).hexdigest()
    assert receipt["source"]["kind"] == "generate"
    assert receipt["distribution"]["scale"] == 0.5


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(tmp_path: Path, tokenizer_file: Path) -> None:
    """The seed decides everything."""
    first = make(tmp_path / "1", tokenizer_file)
    assert make(tmp_path / "2", tokenizer_file) == first
    assert make(tmp_path / "3", tokenizer_file, seed=8)["sha256"] != first["sha256"]


def test_an_existing_dataset_is_left_alone_and_a_damaged_one_is_written_again(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    """The second call keeps the file; after damage the same bytes come back."""
    receipt = make(tmp_path, tokenizer_file)
    inode = (tmp_path / "sharegpt.json").stat().st_ino
    assert make(tmp_path, tokenizer_file) == receipt
    assert (tmp_path / "sharegpt.json").stat().st_ino == inode
    (tmp_path / "sharegpt.json").write_text("[]")
    assert make(tmp_path, tokenizer_file) == receipt
    assert hashlib.sha256((tmp_path / "sharegpt.json").read_bytes()).hexdigest() == receipt["sha256"]


@pytest.mark.parametrize("changes", [{"count": 0}, {"scale": 0.0}, {"scale": 1.5}])
def test_numbers_out_of_range_are_refused(tmp_path: Path, tokenizer_file: Path, changes: dict[str, Any]) -> None:
    """The error states the number and its range."""
    with pytest.raises(BerthError, match=r"count is .* \(at least 1\), scale is .* \(above 0, at most 1\)"):
        make(tmp_path, tokenizer_file, **changes)


def test_a_tokenizer_without_byte_level_words_is_refused(tmp_path: Path) -> None:
    """Texts of exact length cannot be made for a word-level tokenizer, and nothing is written."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BerthError, match="use a byte-level BPE tokenizer"):
        make(tmp_path, tmp_path / "tokenizer.json")
    assert not (tmp_path / "sharegpt.json").exists()


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    """A missing or foreign tokenizer.json is one error with its path."""
    with pytest.raises(BerthError, match=r"nothing\.json cannot be read as a tokenizer\.json"):
        make(tmp_path, tmp_path / "nothing.json")
