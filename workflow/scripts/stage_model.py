from berth.console import script
from berth.stages import stage

with script(snakemake.log[0]):
    stage(
        store=snakemake.params.store,
        repo=snakemake.params.repo,
        models_dir=snakemake.params.models_dir,
        receipt=snakemake.output.receipt,
        data_dir=snakemake.params.data_dir,
        pushed=snakemake.input.receipt,
        in_pods=snakemake.params.in_pods,
    )
