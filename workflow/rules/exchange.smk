# Measured points between clusters, through the platform's object store. They have no output, so that they always look.
#
# Inputs:  results/points/; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY from the environment
# Outputs: objects below store.results_prefix (push_results); results/points/ (pull_results)


localrules:
    push_results,
    pull_results,


rule push_results:
    log:
        f"{RESULTS}/logs/exchange/push.log",
    conda:
        "../../environment.yml"
    params:
        exchange=lambda w: exchange_of(),
    script:
        "../scripts/push_results.py"


rule pull_results:
    log:
        f"{RESULTS}/logs/exchange/pull.log",
    conda:
        "../../environment.yml"
    params:
        exchange=lambda w: exchange_of(),
    script:
        "../scripts/pull_results.py"
