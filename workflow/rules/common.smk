# The plan, and the paths that rules share. No rules here.

from dataclasses import asdict
from pathlib import Path

from snakemake.exceptions import WorkflowError

from berth.accept import end_run
from berth.draw import draw_what_there_is
from berth.errors import BerthError
from berth.parse import load_config
from berth.plan import make_plan
from berth.preflight import preflight

try:
    BERTH = load_config(config, Path.cwd())
    PLAN = make_plan(BERTH, Path.cwd())
except BerthError as error:
    raise WorkflowError(str(error)) from None

RESULTS = BERTH.results
# Names become folders, so they hold no slash.
NAME = r"[^/]+"
POINT = (
    f"{RESULTS}/points/{{experiment}}/{{platform}}/{{spec}}/run{{run}}/c{{concurrency}}"
)


wildcard_constraints:
    model=NAME,
    dataset=NAME,
    platform=NAME,
    recipe=NAME,
    version=NAME,
    kind=NAME,
    spec=r"[0-9a-f]{10}",
    run=r"[0-9]+",
    concurrency=r"[0-9]+",
    attempt=r"[0-9]+",


def point_files(keys):
    """The record of each point, from keys such as local/local/0123456789/run1/c16."""
    return [f"{RESULTS}/points/{key}.json" for key in sorted(keys)]


def figure_files():
    """Every figure of every experiment that has something to draw, in three formats."""
    return [
        f"{RESULTS}/figures/{experiment}/{kind}.{extension}"
        for experiment, kinds in PLAN.figures.items()
        for kind in kinds
        for extension in ("pdf", "svg", "png")
    ]


def measurable(files):
    """An input function for files that measuring makes; it fails where a run that is asked for cannot be measured."""

    def wanted(wildcards):
        try:
            PLAN.require_measurable()
        except BerthError as error:
            raise WorkflowError(str(error)) from None
        return files

    return wanted


def run_of(w):
    """The run that a rule's wildcards name."""
    return PLAN.run(w.experiment, w.platform, w.spec, w.run)


def marker_of(w):
    """The marker of the sweep that measures a point; none for a point that waits in the spool."""
    return PLAN.marker(w.experiment, w.platform, w.spec, w.run, w.concurrency)


def sweep_inputs(wildcards):
    """The receipts that one sweep reads: the staged model, the staged image, the dataset."""
    run = run_of(wildcards)
    platform = run.deployment.platform
    return {
        "model": f"{RESULTS}/staged/{platform}/{run.deployment.model}.json",
        "image": f"{RESULTS}/images/{platform}/{run.deployment.recipe}-{run.deployment.version}.json",
        "dataset": f"{RESULTS}/datasets/{run.benchmark.dataset}/receipt.json",
    }


def check_before_start():
    """Stop the workflow before its first job when something that it needs is known to be missing."""
    try:
        preflight(PLAN)
    except BerthError as error:
        raise WorkflowError(str(error)) from None


def draw_failures():
    """Put what failed into the figures; a failure to draw must not hide what it would have shown."""
    try:
        draw_what_there_is(make_plan(BERTH, Path.cwd()))
    except BerthError as error:
        print(f"The figures could not be drawn: {error}")
