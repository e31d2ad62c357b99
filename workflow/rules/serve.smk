# Deployments that stay up: `serve` keeps one up until `unserve`, an end date or too many failures. It runs beside
# Snakemake and has neither input nor output, so that no lock of Snakemake's is held as long as it serves. Its jobs
# (term: one server each) are submitted by Snakemakes of their own with the same options.
#
# Inputs:  the receipts of model and image; --config deployment=NAME [until=2026-12-01T18:00]
# Outputs: results/services/{platform}/{deployment}.json: state, endpoint and history; the folder beside it


localrules:
    serve,
    unserve,


rule serve:
    log:
        served_log("serve"),
    conda:
        "../../environment.yml"
    params:
        request=lambda w: serve_request_of(),
    script:
        "../scripts/serve.py"


rule unserve:
    log:
        served_log("unserve"),
    conda:
        "../../environment.yml"
    params:
        request=lambda w: serve_request_of(),
    script:
        "../scripts/unserve.py"


rule term:
    output:
        marker=touch(f"{RESULTS}/services/{{platform}}/{{deployment}}/t{{number}}.done"),
    log:
        f"{RESULTS}/logs/serve/{{platform}}/{{deployment}}/t{{number}}.log",
    wildcard_constraints:
        deployment=NAME,
        number=r"[0-9]+",
    # Its keeper decides whether there is another one.
    retries: 0
    conda:
        "../../environment.yml"
    resources:
        **resources_of_term(),
    params:
        request=lambda w: term_request_of(int(w.number)),
    script:
        "../scripts/term.py"
