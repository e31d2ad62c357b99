# Several benchmark clients against one server: do they measure the same? One job, like a sweep.
#
# Inputs:  the receipts of model, dataset, and the images of the server and of the clients
# Outputs: results/cross_check/{experiment}/{platform}/cross_check.md and .csv, the records of each client beside them


rule cross_check:
    input:
        unpack(cross_check_inputs),
    output:
        page=f"{CROSS_CHECK}/cross_check.md",
        table=f"{CROSS_CHECK}/cross_check.csv",
    log:
        f"{RESULTS}/logs/cross_check.log",
    conda:
        "../../environment.yml"
    threads: workflow.cores or 1
    resources:
        **resources_of_cross_check(),
    params:
        request=lambda w: cross_check_request(),
        settings=lambda w: cross_check_settings(),
    script:
        "../scripts/cross_check.py"
