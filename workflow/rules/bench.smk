# Measuring: one job brings up one server and measures the missing points of one run (or the part of them that fits into
# the site's longest job); each point is then checked and moved into results on its own.
#
# Inputs:  the receipts of model, image and dataset
# Outputs: results/points/{experiment}/{platform}/{spec}/run{run}/{level}.json


localrules:
    levels,
    point,


rule sweep:
    input:
        unpack(sweep_inputs),
    output:
        marker=temp(
            f"{RESULTS}/sweeps/{{experiment}}/{{platform}}/{{spec}}/run{{run}}.attempt{{attempt}}.{{part}}.done"
        ),
    log:
        f"{RESULTS}/logs/sweep/{{experiment}}/{{platform}}/{{spec}}/run{{run}}.attempt{{attempt}}.{{part}}.log",
    conda:
        "../../environment.yml"
    # A server takes the whole machine where no scheduler gives it one: on the local platform, and where a person runs
    # Snakemake with `--executor local` in an allocation. A function, because the executor is known late.
    threads: threads_of_measurement
    resources:
        **resources_of_sweep(),
    params:
        request=lambda w: PLAN.sweep_request(key_of(w), w.part),
    script:
        "../scripts/sweep.py"


# What a sweep that stops early or refines has decided: a file with the levels whose points are to be accepted. Only
# then are the points known that the workflow asks for.
checkpoint levels:
    input:
        sweeps_of,
    output:
        f"{RESULTS}/sweeps/{{experiment}}/{{platform}}/{{spec}}/run{{run}}.attempt{{attempt}}.levels.json",
    log:
        f"{RESULTS}/logs/levels/{{experiment}}/{{platform}}/{{spec}}/run{{run}}.attempt{{attempt}}.log",
    conda:
        "../../environment.yml"
    params:
        results=lambda w: RESULTS,
        asked=lambda w: PLAN.at(key_of(w)).benchmark.asked,
    script:
        "../scripts/levels.py"


rule point:
    input:
        marker_of,
    output:
        record=f"{POINT}.json",
        requests=f"{POINT}.requests.json.gz",
    log:
        f"{RESULTS}/logs/point/{{experiment}}/{{platform}}/{{spec}}/run{{run}}/{{level}}.log",
    wildcard_constraints:
        # Only a missing point can be made. One that exists is a source file: nothing can make it run again.
        experiment=PLAN.only_missing,
    conda:
        "../../environment.yml"
    params:
        results=lambda w: RESULTS,
    script:
        "../scripts/accept_point.py"
