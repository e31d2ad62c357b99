# The report: one HTML page of everything that was measured, compared and doubted.
#
# Inputs:  results/points/, results/failures/, results/tidy/points.parquet, data/published/,
#          results/compare/
# Outputs: results/tidy/provenance.json; results/report/index.html


localrules:
    provenance,
    report_page,
    html_report,


rule provenance:
    input:
        points=point_files(PLAN.existing | PLAN.targets),
        decided=decided_points,
    output:
        f"{RESULTS}/tidy/provenance.json",
    log:
        f"{RESULTS}/logs/provenance.log",
    conda:
        "../../environment.yml"
    params:
        failures=[f"{RESULTS}/failures/{key}.json" for key in PLAN.failures],
    script:
        "../scripts/provenance.py"


rule report_page:
    input:
        table=f"{RESULTS}/tidy/points.parquet",
        provenance=f"{RESULTS}/tidy/provenance.json",
    output:
        report(
            f"{RESULTS}/report/index.html",
            caption="../report/page.rst",
            category="Report",
        ),
    log:
        f"{RESULTS}/logs/report.log",
    conda:
        "../../environment.yml"
    params:
        experiments=lambda w: pages_of_report(),
        profiles=lambda w: profiles_of_report(),
        comparisons=lambda w: comparisons_of_report(),
        published_dir=BERTH.published_dir,
    script:
        "../scripts/report_page.py"


# `snakemake html_report` shows what there is, at any time. It has no output, so that it always does so, and no input, so
# that nothing is ever measured for it. Not called `report`: that is a word of Snakemake's own, here and as an option.
rule html_report:
    log:
        f"{RESULTS}/logs/html_report.log",
    conda:
        "../../environment.yml"
    params:
        request=lambda w: what_can_be_reported(),
    script:
        "../scripts/html_report.py"
