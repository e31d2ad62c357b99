# The table of all points, and the figures of each experiment.
#
# Inputs:  results/points/, results/failures/, results/imported/, data/published/
# Outputs: results/tidy/points.parquet and .csv; results/figures/{experiment}/{kind}.pdf, .svg and .png


localrules:
    tidy,
    figure,


rule tidy:
    input:
        points=point_files(PLAN.existing | PLAN.targets),
        decided=decided_points,
        imported=imported_files(),
    output:
        parquet=report(
            f"{RESULTS}/tidy/points.parquet",
            caption="../report/tidy.rst",
            category="Tables",
        ),
        csv=report(
            f"{RESULTS}/tidy/points.csv",
            caption="../report/tidy.rst",
            category="Tables",
        ),
    log:
        f"{RESULTS}/logs/tidy.log",
    conda:
        "../../environment.yml"
    params:
        failures=[f"{RESULTS}/failures/{key}.json" for key in PLAN.failures],
        not_run=PLAN.not_run,
        labels={name: platform.label for name, platform in BERTH.platforms.items()},
        asked=PLAN.asked,
    script:
        "../scripts/tidy.py"


rule figure:
    input:
        table=f"{RESULTS}/tidy/points.parquet",
    output:
        pdf=f"{RESULTS}/figures/{{experiment}}/{{kind}}.pdf",
        svg=report(
            f"{RESULTS}/figures/{{experiment}}/{{kind}}.svg",
            caption="../report/figure.rst",
            category="{experiment}",
            labels={"figure": "{kind}"},
        ),
        png=f"{RESULTS}/figures/{{experiment}}/{{kind}}.png",
    log:
        f"{RESULTS}/logs/figure/{{experiment}}/{{kind}}.log",
    conda:
        "../../environment.yml"
    resources:
        # Profiles of clusters limit them: a login node is shared.
        drawings=1,
    params:
        title=lambda w: BERTH.experiments[w.experiment].title,
        note=lambda w: PLAN.note_of(w.experiment, w.kind),
        published=lambda w: PLAN.published_of(w.experiment, w.kind),
        published_dir=BERTH.published_dir,
    script:
        "../scripts/figure.py"
