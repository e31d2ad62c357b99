# Whether models and points still are what they were: `snakemake custody`. It has no output, so that it always looks.
#
# Inputs:  results/, the platform's store, paths.models, and the hub where it can be reached
# Outputs: results/custody/{model or point, or "all"}.json and .md


localrules:
    custody,


rule custody:
    log:
        f"{RESULTS}/logs/custody.log",
    conda:
        "../../environment.yml"
    params:
        request=lambda w: custody_request(),
    script:
        "../scripts/custody.py"
