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
    threads: threads_of_measurement
    resources:
        **resources_of_cross_check(),
    params:
        request=lambda w: cross_check_request(),
        settings=lambda w: cross_check_settings(),
    script:
        "../scripts/cross_check.py"


# No server of a model: the client asks a stand-in that answers at once. It has no output, so that it always measures
# again; what is measured is kept in results/clients/{platform}.json, where the validity gate reads it.
rule client_ceiling:
    input:
        unpack(ceiling_inputs),
    log:
        f"{RESULTS}/logs/client_ceiling.log",
    conda:
        "../../environment.yml"
    threads: threads_of_measurement
    resources:
        **resources_of_ceiling(),
    params:
        request=lambda w: ceiling_request(),
    script:
        "../scripts/client_ceiling.py"
