"""The two ways in which the points of a run follow one another, and what each means for a point. See docs/method.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from berth.coordinates import Rate
from berth.errors import BerthError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from berth.coordinates import Level
    from berth.recipe import Recipe

Mode = Literal["paper", "clean"]
CacheState = Literal["as_it_was", "disabled", "reset"]

# Rates of a benchmark differ by more than this part of a request per second.
_PER_UNIT_OF_RATE = 1000


def mode_of(benchmark: Mapping[str, Any]) -> Mode:
    """How a benchmark (config.Benchmark as a mapping, or the `benchmark` of a spec) is measured.

    One that says nothing is measured as in the paper. That stands in no spec, so that older points keep theirs.
    """
    return "clean" if benchmark.get("mode") == "clean" else "paper"


def point_seed(benchmark: Mapping[str, Any], level: Level) -> int:
    """The seed that chooses the prompts of a point; with `seed_per_point` another at each level, the same in every run.

    It is never that of the warm-up, which is the benchmark's plus one.
    """
    seed = int(benchmark["seed"])
    if not benchmark.get("seed_per_point"):
        return seed
    return seed + 1 + (round(level * _PER_UNIT_OF_RATE) if isinstance(level, Rate) else level)


def cache_state(recipe: Recipe, args: Mapping[str, Any], env: Mapping[str, Any]) -> CacheState | None:
    """What mode clean does about a server's prefix cache before a point, from the settings that it is started with.

    None: the cache is on and the server cannot be told to reset it, or the recipe does not say how.
    """
    cache = recipe.prefix_cache
    if cache is None:
        return None
    if args.get(cache.flag) is False:
        return "disabled"
    return "reset" if cache.reset and str(env.get(cache.reset_env)) == "1" else None


def check_clean(recipe: Recipe, args: Mapping[str, Any], env: Mapping[str, Any], where: str) -> None:
    """Return when a server with these settings can be measured in mode clean; `where` is the key of its deployment.

    Raises:
        BerthError: its prefix cache would carry from point to point.
    """
    if cache_state(recipe, args, env) is not None:
        return
    cache = recipe.prefix_cache
    if cache is None:
        raise BerthError(
            f"{recipe.file}: prefix_cache is missing: mode clean must know how the service's prefix cache is switched "
            "off. Add the section (docs/recipes.md), or measure in mode paper."
        )
    reset = f', or let Berth reset it before each point with env: {{{cache.reset_env}: "1"}}' if cache.reset else ""
    raise BerthError(
        f"{where}: its prefix cache is on ({cache.flag} is {args.get(cache.flag)!r}), so that a point would begin with "
        f"the prompts of the one before it, and the benchmark's mode is clean. Remove {cache.flag} from its "
        f"args{reset}. docs/method.md has both."
    )


@dataclass(frozen=True)
class Method:
    """How a point was measured, beyond its definition: the `method` of its record.

    `warm_up_prompts` were sent right before this point and not measured (those before the first point of a server
    do not count here). `prefix_cache` is None where the point did not come so far. `idle_wait_s` is how long it took
    until the server had no other work, None where that is not looked at.
    """

    mode: Mode
    seed: int
    warm_up_prompts: int = 0
    prefix_cache: CacheState | None = None
    idle_wait_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The method as JSON values."""
        return {
            "mode": self.mode,
            "seed": self.seed,
            "warm_up_prompts": self.warm_up_prompts,
            "prefix_cache": self.prefix_cache,
            "idle_wait_s": None if self.idle_wait_s is None else round(self.idle_wait_s, 3),
        }
