"""What the jobs of the report are told: plain values of a plan, for Snakemake to hand over.

Every Snakemake of Berth asks for them, so that nothing is imported here that takes long, as tables and figures do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from berth.plan import Plan


def asked_of(plan: Plan, *, missing: bool) -> list[dict[str, Any]]:
    """The experiments that have something to show, as fields of `report_data.Asked`.

    `missing` tells how many points are not measured yet; without it, all are taken to be there.
    """
    gone: dict[str, int] = {}
    if missing:
        measured = plan.existing
        for run in plan.runs.values():
            left = sum(point.key not in measured for point in run.points)
            gone[run.id.experiment] = gone.get(run.id.experiment, 0) + left
    return [
        {
            "name": name,
            "title": plan.config.experiments[name].title,
            "kinds": list(kinds),
            "published": list(plan.config.experiments[name].published),
            **({"note": note} if (note := plan.note_of(name, "goodput")) else {}),
            "missing": gone.get(name, 0),
        }
        for name, kinds in plan.figures.items()
    ]


def profiles_of(plan: Plan) -> dict[str, str]:
    """The profile that measures each platform, where it has the platform's name."""
    named = {name: f"profiles/{name}" for name in plan.config.platforms}
    return {name: profile for name, profile in sorted(named.items()) if (plan.root / profile).is_dir()}


def comparisons_of(plan: Plan) -> list[str]:
    """The outcomes of comparisons that were run."""
    found = (plan.root / plan.config.results / "compare").glob("*/*/comparison.json")
    return sorted(path.relative_to(plan.root).as_posix() for path in found)


def what_there_is(plan: Plan, looked_s: float) -> dict[str, Any]:
    """What `report_what_there_is` is told, as plain values, so that Snakemake can hand them to its job.

    `looked_s` is a time before the plan looked at what exists, in seconds since 1970.
    """
    config, results = plan.config, plan.config.results
    return {
        "results": results,
        "records": [f"{results}/points/{key}.json" for key in sorted(plan.existing)],
        "failures": [f"{results}/failures/{key}.json" for key in plan.failures],
        "imported": [str(path) for path in plan.imported],
        "not_run": plan.not_run,
        "asked": plan.asked,
        "labels": {name: platform.label for name, platform in config.platforms.items()},
        "published_dir": config.published_dir,
        "experiments": asked_of(plan, missing=True),
        "profiles": profiles_of(plan),
        "comparisons": comparisons_of(plan),
        "looked_s": looked_s,
    }
