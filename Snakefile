# Berth: a model from the hub to the object store, a containerised server on the cluster at hand, a sweep of the maximum
# request concurrency, and figures. `snakemake --profile profiles/local` runs the whole chain on this machine.
#
# Inputs: config/ (see config/README.md). Outputs: results/ (see docs/architecture.md).

from snakemake.utils import min_version

# Older versions keep temporary markers of failed points and know no checksum of small inputs.
min_version("9.27")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


# Light, or in need of a way to the internet, which compute nodes often have not.
localrules:
    all,
    points,
    figures,
    download_model,
    fetch_dataset,
    push_model,


# Staging is heavy. It runs beside Snakemake unless the platform says how to ask for a job.
if not resources_of_staging():

    localrules:
        stage_model,
        stage_image,


rule all:
    default_target: True
    input:
        # The missing points by name: Snakemake does not make a missing intermediate while its final target is up to date.
        measurable(point_files(PLAN.targets) + decision_files()),
        measurable(figure_files() + report_files(), drawn=True),
        decided_points,


rule points:
    input:
        measurable(point_files(PLAN.targets) + decision_files()),
        decided_points,


rule figures:
    input:
        measurable(decision_files() + figure_files(), drawn=True),


include: "workflow/rules/model.smk"
include: "workflow/rules/store.smk"
include: "workflow/rules/image.smk"
include: "workflow/rules/bench.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/render.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/import.smk"
include: "workflow/rules/crosscheck.smk"
include: "workflow/rules/serve.smk"
include: "workflow/rules/access.smk"
include: "workflow/rules/doctor.smk"
include: "workflow/rules/exchange.smk"
include: "workflow/rules/custody.smk"
include: "workflow/rules/bundle.smk"


onstart:
    check_before_start()
    check_one_server()
    check_scheduler()


onsuccess:
    end_of_run()


onerror:
    end_of_run()
    tell_failures()
