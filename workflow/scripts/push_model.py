from berth.console import script
from berth.stages import push

with script(snakemake.log[0]):
    push(
        store=snakemake.params.store,
        repo=snakemake.params.repo,
        model_dir=snakemake.params.model_dir,
        manifest=snakemake.input.manifest,
        receipt=snakemake.output.receipt,
        data_dir=snakemake.params.data_dir,
    )
