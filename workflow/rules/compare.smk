# Whether numbers can be believed, and what they cost: points against others or a baseline, their spread over runs. These
# rules have no output, so that they always look. What is missing of the experiment is measured first, unless `partial` is
# set; `costs` measures nothing.
#
# Inputs:  results/points/, results/failures/, results/imported/, data/published/, files that the user names
# Outputs: results/compare/{experiment}/{against}/comparison.*, results/baselines/{name}.json,
#          results/statistics/{experiment}/statistics.* and bands.*, results/costs/


localrules:
    compare,
    baseline,
    statistics,
    costs,


# Exit code 1 where something is slower than allowed.
rule compare:
    input:
        measured_first(BERTH.experiment),
        decided_first(BERTH.experiment),
    log:
        f"{RESULTS}/logs/compare.log",
    conda:
        "../../environment.yml"
    params:
        config=lambda w: BERTH,
    script:
        "../scripts/compare.py"


rule baseline:
    input:
        measured_first(BERTH.experiment),
        decided_first(BERTH.experiment),
    log:
        f"{RESULTS}/logs/baseline.log",
    conda:
        "../../environment.yml"
    params:
        config=lambda w: BERTH,
    script:
        "../scripts/baseline.py"


rule statistics:
    input:
        measured_first(BERTH.experiment),
        decided_first(BERTH.experiment),
    log:
        f"{RESULTS}/logs/statistics.log",
    conda:
        "../../environment.yml"
    params:
        config=lambda w: BERTH,
    script:
        "../scripts/statistics.py"


rule costs:
    log:
        f"{RESULTS}/logs/costs.log",
    conda:
        "../../environment.yml"
    params:
        config=lambda w: BERTH,
    script:
        "../scripts/costs.py"
