"""How long the prompts and answers of ShareGPT are, as vLLM's benchmark client samples them.

Both lengths are lognormal, truncated as the client truncates: prompts of 4 to 1024 tokens, answers of at least 4, at
most 2048 together (`is_valid_sequence` in vllm/benchmarks/datasets). docs/dataset.md says where the numbers come from
and how well they fit.
"""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

MIN_TOKENS = 4
MAX_PROMPT_TOKENS = 1024
MAX_TOTAL_TOKENS = 2048

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Lognormal:
    """The logarithm of the length is normal with these parameters, before truncation."""

    mu: float
    sigma: float

    def length(self, quantile: float, low: int, high: int) -> int:
        """The whole number of tokens below which this share (0 to 1) of the distribution between low and high lies."""
        below = _NORMAL.cdf((math.log(low - 0.5) - self.mu) / self.sigma)
        above = _NORMAL.cdf((math.log(high + 0.5) - self.mu) / self.sigma)
        share = below + quantile * (above - below)
        return min(high, max(low, round(math.exp(self.mu + self.sigma * _NORMAL.inv_cdf(share)))))


PROMPT = Lognormal(mu=5.1775, sigma=1.5365)
ANSWER = Lognormal(mu=4.912, sigma=0.7714)


def draw_lengths(count: int, seed: int, scale: float = 1.0) -> list[tuple[int, int]]:
    """`count` pairs (prompt tokens, answer tokens), the same for the same seed.

    Each length is drawn once from every 1/count of its distribution, in random order, so that a dataset of a few
    hundred conversations has the mean and the tail of the whole. `scale` shortens both lengths; none gets below 4.
    """
    rng = random.Random(seed)
    prompts, answers = _shares(count, rng), _shares(count, rng)
    pairs = []
    for prompt_share, answer_share in zip(prompts, answers, strict=True):
        prompt = PROMPT.length(prompt_share, MIN_TOKENS, MAX_PROMPT_TOKENS)
        answer = ANSWER.length(answer_share, MIN_TOKENS, MAX_TOTAL_TOKENS - prompt)
        pairs.append((max(MIN_TOKENS, round(prompt * scale)), max(MIN_TOKENS, round(answer * scale))))
    return pairs


def _shares(count: int, rng: random.Random) -> list[float]:
    shares = [(index + rng.uniform(0.001, 0.999)) / count for index in range(count)]
    rng.shuffle(shares)
    return shares


def summary(lengths: Sequence[int]) -> dict[str, Any]:
    """Mean, standard deviation, median, 99th percentile (nearest rank) and largest of token counts."""
    ordered = sorted(lengths)
    return {
        "mean": round(statistics.fmean(ordered), 2),
        "std": round(statistics.pstdev(ordered), 2),
        "median": statistics.median(ordered),
        "p99": ordered[math.ceil(0.99 * len(ordered)) - 1],
        "max": ordered[-1],
    }
