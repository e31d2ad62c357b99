# The plan, and the paths that rules share. No rules here.
#
# Every job reads this file twice, so that what only some calls need (pandas, matplotlib, boto3: half of the time that a
# Snakemake of Berth takes to start) is imported where it is needed.

import json
import os
import sys
import time
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

from snakemake.exceptions import WorkflowError

from berth.accept import end_run
from berth.config import Deployment, Network
from berth.coordinates import LEVEL_PATTERN, RunId, parse_level
from berth.errors import BerthError
from berth.network import own_env
from berth.parse import load_config
from berth.parts import PATTERN as PART
from berth.plan import FORMATS, make_plan
from berth.resources import staging_resources, sweep_names
from berth.slurm import check_status_command
from berth.submission import OPTIONS, require_taken

# Before the plan looks at what exists.
LOOKED_S = time.time()
try:
    BERTH = load_config(config, Path.cwd())
    PLAN = make_plan(BERTH, Path.cwd())
except BerthError as error:
    raise WorkflowError(str(error)) from None

# Every job of Berth inherits it, also one on another node, which reads this file again.
os.environ.update(
    own_env(
        BERTH.platforms[BERTH.platform].network or Network(),
        os.environ,
        BERTH.platforms[BERTH.platform].host,
    )
)

RESULTS = BERTH.results
# What the targets of this invocation ask for, known once the graph of jobs is made.
ASKED = set()
# Names become folders, so they hold no slash.
NAME = r"[^/]+"
POINT = f"{RESULTS}/points/{{experiment}}/{{platform}}/{{spec}}/run{{run}}/{{level}}"


wildcard_constraints:
    model=NAME,
    dataset=NAME,
    platform=NAME,
    recipe=NAME,
    version=NAME,
    kind=NAME,
    spec=r"[0-9a-f]{10}",
    run=r"[0-9]+",
    level=LEVEL_PATTERN,
    attempt=r"[0-9]+",
    part=PART,


def point_files(keys):
    """The record of each point, from keys such as local/local/0123456789/run1/c16."""
    return [f"{RESULTS}/points/{key}.json" for key in sorted(keys)]


def imported_files():
    """The points that other tools measured."""
    folder = Path.cwd() / RESULTS
    return [f"{RESULTS}/{path.relative_to(folder)}" for path in PLAN.imported]


def figure_files():
    """Every figure of every experiment that has something to draw, in three formats."""
    return [
        f"{RESULTS}/figures/{experiment}/{kind}.{extension}"
        for experiment, kinds in PLAN.figures.items()
        for kind in kinds
        for extension in FORMATS
    ]


def report_files():
    """The page of the report; none where there is nothing to show."""
    return [f"{RESULTS}/report/index.html"] if PLAN.figures else []


def pages_of_report():
    """The experiments of the report, all their points taken to be measured."""
    from berth.report_request import asked_of

    return asked_of(PLAN, missing=False)


def profiles_of_report():
    """The profile that measures each platform."""
    from berth.report_request import profiles_of

    return profiles_of(PLAN)


def comparisons_of_report():
    """The outcomes of comparisons that were run."""
    from berth.report_request import comparisons_of

    return comparisons_of(PLAN)


def what_can_be_reported():
    """What the report shows of an unfinished workflow, as plain values."""
    from berth.report_request import what_there_is

    return what_there_is(PLAN, LOOKED_S)


def resources_of_staging():
    """What staging asks the scheduler for where it is a job; nothing elsewhere."""
    return staging_resources(BERTH.platforms[BERTH.platform])


def submitted_jobs():
    """What each job that would be submitted is for, and what it asks for."""
    for job in workflow.dag.needrun_jobs():
        if not job.is_local:
            sweep = job.rule.name == "sweep"
            what = (
                PLAN.at(key_of(job.wildcards)).deployment.name
                if sweep
                else job.rule.name
            )
            yield what, {name: job.resources.get(name) for name in OPTIONS}


def check_scheduler():
    """Fail where Slurm would refuse a job, and where Snakemake would wait for ever for one that has ended."""
    slurm = (
        BERTH.platforms[BERTH.platform].scheduler == "slurm" and workflow.non_local_exec
    )
    # What submits nothing, such as `render` and `doctor`, needs no scheduler.
    if slurm and not all(job.is_local for job in workflow.dag.needrun_jobs()):
        settings = workflow.executor_settings
        try:
            check_status_command(
                settings.status_command, settings.init_seconds_before_status_checks
            )
            file = f"{BERTH.config_dir}/platforms/{BERTH.platform}.yaml"
            require_taken(submitted_jobs(), file)
        except BerthError as error:
            raise WorkflowError(str(error)) from None


def check_one_server():
    """Fail where `--executor local` would start servers side by side on the one node that a person has.

    With `jobs` and `--cores` together Snakemake looks at the former only, and not at the cores that a sweep takes.
    """
    side_by_side = workflow.global_resources["_nodes"].value or 1
    sweeps = [job for job in workflow.dag.needrun_jobs() if job.rule.name == "sweep"]
    if workflow.local_exec and len(sweeps) > 1 and side_by_side > 1:
        raise WorkflowError(
            f"--executor local --cores: with the {side_by_side} jobs that the profile allows at once, {len(sweeps)} "
            "servers would run side by side on this node, each slowed by the others. Leave --cores out."
        )


def measurable(files, drawn=False):
    """An input function for files that measuring makes; it fails where a run that is asked for cannot be measured.

    `drawn` says that figures are among them.
    """

    def wanted(wildcards):
        ASKED.update({"measurements", "figures"} if drawn else {"measurements"})
        try:
            PLAN.require_measurable()
        except BerthError as error:
            raise WorkflowError(str(error)) from None
        return files

    return wanted


def decision_files(experiment=""):
    """What the sweeps of open runs decide; asked for by name, so that these do not wait for one another."""
    return [
        PLAN.jobs.decision_file(key)
        for key in PLAN.open_runs
        if not experiment or key.startswith(f"{experiment}/")
    ]


def decided_points(wildcards=None, experiment=""):
    """The points of open runs, known once their sweeps have ended.

    An input of its own wherever it stands: until then Snakemake knows nothing of all that one function returns.
    """
    found = []
    for key in PLAN.open_runs:
        if experiment and not key.startswith(f"{experiment}/"):
            continue
        names = ("experiment", "platform", "spec", "run")
        where = dict(zip(names, key.split("/")))
        where["run"] = where["run"].removeprefix("run")
        decided = checkpoints.levels.get(**where, attempt=PLAN.attempts.get(key, 1))
        levels = json.loads(Path(decided.output[0]).read_text())["levels"]
        found += [f"{key}/{level}" for level in levels]
    return point_files(found)


@cache
def _sweeps_of(key, attempt):
    there = sorted(Path(f"{RESULTS}/sweeps").glob(f"{key}.attempt{attempt}.*.done"))
    return [str(path) for path in there] or PLAN.jobs.markers(key, attempt)


def sweeps_of(w):
    """The markers of the jobs that measure an open run, as they were when this was first asked.

    The job itself reads this file again when these have ended, and other levels are missing then.
    """
    return _sweeps_of(key_of(w), int(w.attempt))


def measured_first(reference):
    """An input function for what looks at one experiment: its points that are missing here; nothing for a file."""
    runs = {f"run{number}" for number in BERTH.only_runs}
    keys = [
        key
        for key in PLAN.targets
        if key.startswith(f"{reference}/")
        and (not runs or key.rsplit("/", 2)[1] in runs)
    ]
    # Runs that decide for themselves come whole.
    openly = decision_files(reference)
    return measurable(point_files(keys) + openly) if keys or openly else []


def decided_first(reference):
    """An input function beside that of measured_first: the points of one experiment that its sweeps decide on."""
    return (
        partial(decided_points, experiment=reference)
        if decision_files(reference)
        else []
    )


def key_of(w):
    """The key of the run that a rule's wildcards name."""
    return RunId(w.experiment, w.platform, w.spec, int(w.run)).key


def marker_of(w):
    """The marker of the sweep that measures a point; none for a point that waits in the spool."""
    try:
        return PLAN.jobs.marker(key_of(w), parse_level(w.level))
    except BerthError as error:
        raise WorkflowError(str(error)) from None


def sweep_inputs(w):
    """The receipts that one sweep reads (model, images, dataset), and the marker of the part before it."""
    run = PLAN.at(key_of(w))
    return {
        **receipts_of(run),
        "before": PLAN.jobs.marker_before(key_of(w), int(w.attempt), w.part),
        "tools": tool_receipts([run.benchmark.client]),
    }


def receipts_of(run):
    """The receipts of a run's model, image and dataset."""
    platform = run.deployment.platform
    return {
        "model": f"{RESULTS}/staged/{platform}/{run.deployment.model}.json",
        "image": f"{RESULTS}/images/{platform}/{run.deployment.recipe}-{run.deployment.version}.json",
        "dataset": f"{RESULTS}/datasets/{run.benchmark.dataset}/receipt.json",
    }


def tool_receipts(names):
    """The receipts of the images of clients; none for vLLM's own, which is in the server's image."""
    return [each["receipt"] for each in PLAN.tools(names).values()]


CROSS_CHECK = f"{RESULTS}/cross_check/{BERTH.experiment or 'none'}/{BERTH.platform}"


def cross_check_settings():
    """What `cross_check` compares, as plain values."""
    from berth.analysis import CrossCheckSettings

    return asdict(BERTH.cross_check or CrossCheckSettings())


def cross_check_request():
    """What `cross_check` is told of its server."""
    from berth.analysis import CrossCheckSettings
    from berth.crosscheck import request_of

    try:
        return request_of(PLAN, BERTH.cross_check or CrossCheckSettings())
    except BerthError as error:
        raise WorkflowError(str(error)) from None


def cross_check_inputs(w):
    """The receipts that a cross-check reads."""
    from berth.crosscheck import run_of

    try:
        run = run_of(PLAN, "cross_check")
    except BerthError as error:
        raise WorkflowError(str(error)) from None
    return {
        **receipts_of(run),
        "tools": tool_receipts(cross_check_settings()["clients"]),
    }


def threads_of_measurement(wildcards):
    """Every core where it runs on this machine, so that nothing runs beside it; a scheduler's job has its own."""
    return workflow.cores if PLAN.takes_machine or workflow.local_exec else 1


def resources_of_cross_check():
    """What its job asks the scheduler for: what the sweep of the run asks for, as often as it is measured."""

    def one(name, w):
        from berth.crosscheck import resources_of

        try:
            return resources_of(PLAN, len(cross_check_request()["tools"]) + 1)[name]
        except BerthError as error:
            raise WorkflowError(str(error)) from None

    return {
        name: partial(one, name)
        for name in sweep_names(BERTH.platforms[BERTH.platform])
    }


def ceiling_inputs(w):
    """The receipts that `client_ceiling` reads."""
    from berth.crosscheck import run_of

    try:
        run = run_of(PLAN, "client_ceiling")
    except BerthError as error:
        raise WorkflowError(str(error)) from None
    return {**receipts_of(run), "tools": tool_receipts([run.benchmark.client])}


def ceiling_request():
    """What `client_ceiling` is told."""
    from berth.crosscheck import ceiling_request_of

    try:
        return ceiling_request_of(PLAN)
    except BerthError as error:
        raise WorkflowError(str(error)) from None


def resources_of_ceiling():
    """What its job asks the scheduler for: one node, for some minutes."""
    from berth.resources import sweep_resources

    platform = BERTH.platforms[BERTH.platform]
    least = Deployment(
        name="client_ceiling",
        model="",
        recipe="",
        platform=platform.name,
        version="",
    )
    return sweep_resources(least, platform, 15)


def mirrored_image(w):
    """The receipt of an image in the site's registry; none for an environment, or where the site has no registry."""
    try:
        request = PLAN.image_request(w.platform, w.recipe, w.version)
    except BerthError as error:
        raise WorkflowError(str(error)) from None
    name = f"{RESULTS}/mirrored/{w.platform}/{w.recipe}-{w.version}.json"
    return [name] if request and request["site"] else []


def check_before_start():
    """Stop the workflow before its first job when something that it needs is known to be missing."""
    if "serve" in {job.rule.name for job in workflow.dag.jobs}:
        from berth.preflight import preflight_served
        from berth.servesettings import served_deployment

        try:
            preflight_served(PLAN, served_deployment(BERTH))
        except BerthError as error:
            raise WorkflowError(str(error)) from None
    if not ASKED:
        return
    from berth.preflight import preflight

    try:
        preflight(PLAN)
    except BerthError as error:
        raise WorkflowError(str(error)) from None


def end_of_run():
    """Remove what sweeps leave behind, where this is about any: another Snakemake may sweep beside what serves."""
    if ASKED or {"sweep", "point"} & {job.rule.name for job in workflow.dag.jobs}:
        end_run(PLAN)


def tell_failures():
    """Say where it is told what failed, and put it into the figures where these were asked for.

    Nothing where no measurement was asked for.
    """
    if not ASKED:
        return
    print(
        f"Every finished point is kept. What failed and why: {RESULTS}/failures/ and {RESULTS}/logs/."
    )
    if "figures" in ASKED:
        draw_failures()
    print("The same command measures what is still missing.")


def draw_failures():
    """Put what failed into the figures and the report."""
    from berth.draw import draw_what_there_is
    from berth.report import report_what_there_is
    from berth.report_request import what_there_is

    # A failure to draw must not hide what it would have shown.
    try:
        looked_s = time.time()
        plan = make_plan(BERTH, Path.cwd())
        draw_what_there_is(plan)
        report_what_there_is(**what_there_is(plan, looked_s))
    except BerthError as error:
        print(f"The figures could not be drawn: {error}")
    else:
        print(
            f"The figures in {RESULTS}/figures/ and {RESULTS}/report/index.html show it."
        )


def one_resource(name, w):
    """One resource of the job that measures a part of a run."""
    return PLAN.jobs.resources(key_of(w), w.part)[name]


def resources_of_sweep():
    """What a sweep asks its scheduler for: functions by name; nothing where there is no scheduler."""
    names = sweep_names(BERTH.platforms[BERTH.platform])
    return {name: partial(one_resource, name) for name in names}


def serve_request_of():
    """What keeps the deployment up that `--config deployment=NAME` names."""
    from berth.servesettings import serve_request

    # This Snakemake and its options: its jobs are submitted by others of the same.
    argv = [sys.executable, *sys.argv[1:]]
    try:
        return asdict(serve_request(BERTH, Path.cwd(), argv, local=workflow.local_exec))
    except BerthError as error:
        raise WorkflowError(str(error)) from None


def term_request_of(number):
    """What the job of one of its terms is told."""
    from berth.servesettings import term_request

    try:
        return term_request(BERTH, Path.cwd(), number)
    except BerthError as error:
        raise WorkflowError(str(error)) from None


def served_log(verb):
    """The log of `serve` or `unserve`; by deployment, since several may be served from one folder."""
    return (
        f"{RESULTS}/logs/serve/{BERTH.platform}/{BERTH.deployment or 'none'}/{verb}.log"
    )


def resources_of_term():
    """What a term asks its scheduler for: functions by name; nothing where there is no scheduler."""

    def one(name, w):
        from berth.servesettings import term_resources

        return term_resources(BERTH)[name]

    return {
        name: partial(one, name)
        for name in sweep_names(BERTH.platforms[BERTH.platform])
    }


@cache
def all_rendered():
    """The deployments of this platform as they would run, by name."""
    from berth.rendering import renderings

    return renderings(BERTH, Path.cwd(), sys.version_info[:2])


def rendered_folders(w):
    """The folder of each deployment that is rendered."""
    from berth.chartvalues import not_rendered

    return [
        f"{RESULTS}/render/{BERTH.platform}/{name}"
        for name, rendering in all_rendered().items()
        if not not_rendered(rendering)
    ]


def left_out():
    """Why deployments are not rendered, one sentence each."""
    from berth.chartvalues import not_rendered

    return [why for each in all_rendered().values() if (why := not_rendered(each))]


def rendered(name):
    """The files of one deployment and the warnings that belong to them."""
    from berth.render import render_files, warnings_of

    if name not in all_rendered():
        raise WorkflowError(
            f"{name}: no selected experiment uses such a deployment on {BERTH.platform}. "
            f"Known: {', '.join(sorted(all_rendered())) or 'none'}."
        )
    try:
        return render_files(all_rendered()[name]), warnings_of(all_rendered()[name])
    except BerthError as error:
        raise WorkflowError(str(error)) from None


def manifests_command(name):
    """The command that prints the manifests of a deployment; none where it is no chart."""
    from berth.render import manifests_argv

    return manifests_argv(all_rendered()[name])


def patient():
    """What `doctor` looks at."""
    from berth.doctor import patient_of

    executor = getattr(workflow, "executor_settings", None)
    try:
        return patient_of(
            BERTH,
            all_rendered(),
            status_command=getattr(executor, "status_command", None),
            first_check_s=getattr(executor, "init_seconds_before_status_checks", None),
        )
    except BerthError as error:
        raise WorkflowError(str(error)) from None


def store_of(platform):
    """What push_model is told of a platform's store."""
    asked = {"delete_extra": True} if BERTH.delete_extra else {}
    return BERTH.platforms[platform].store.of_rules | asked


def models_to_move():
    """The models of the platform's deployments, or the one that `--config model=` names: what would_move looks at."""
    names = {
        each.model
        for each in BERTH.deployments.values()
        if each.platform == BERTH.platform
    }
    chosen = {BERTH.model} if BERTH.model else names
    return [
        {
            "repo": BERTH.models[name].repo,
            "model_dir": f"{RESULTS}/models/{name}/files",
            "manifest": f"{RESULTS}/models/{name}/manifest.json",
        }
        for name in sorted(chosen)
    ]


def exchange_of():
    """What push_results and pull_results are told: the fields of exchange.Exchange as plain values."""
    return {
        "results": RESULTS,
        "store": asdict(BERTH.platforms[BERTH.platform].store),
        "include": BERTH.share or BERTH.select,
        "data_dir": f"{RESULTS}/seaweedfs",
        "dry_run": BERTH.dry_run,
    }


def custody_request():
    """What custody is told: the fields of custody.CustodyRequest as plain values."""
    from berth.custody import request_of

    try:
        return request_of(BERTH, PLAN.existing)
    except BerthError as error:
        raise WorkflowError(str(error)) from None


@cache
def bundle_request():
    """What pack_bundle is told: the fields of bundle_contents.BundleRequest as plain values."""
    from berth.bundle_request import request_of

    try:
        return request_of(PLAN)
    except BerthError as error:
        raise WorkflowError(str(error)) from None


def bundle_inputs(w):
    """What has to be there before it is packed: models as they were downloaded, datasets, images that are files."""
    asked = bundle_request()
    return {
        "models": [
            f"{RESULTS}/models/{name}/manifest.json" for name in asked["models"]
        ],
        "datasets": [
            f"{RESULTS}/datasets/{name}/receipt.json" for name in asked["datasets"]
        ],
        "images": [
            f"{RESULTS}/images/{BERTH.platform}/{each['recipe']}-{each['version']}.json"
            for each in asked["images"]
            if each["image"]["kind"] != "environment"
        ],
    }
