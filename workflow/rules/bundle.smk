# One file with all that a site without internet needs: `snakemake pack_bundle --config bundle=PATH`; see docs/air-gap.md.
#
# Inputs:  the checkout; manifests of models, receipts of datasets and images of the selected experiments
# Outputs: the file that `bundle` names, which is no output of Snakemake: what is there is never written over


localrules:
    pack_bundle,


rule pack_bundle:
    input:
        unpack(bundle_inputs),
    log:
        f"{RESULTS}/logs/pack_bundle.log",
    conda:
        "../../environment.yml"
    params:
        request=lambda w: bundle_request(),
    script:
        "../scripts/pack_bundle.py"
