from berth.console import script
from berth.stages import would_move

with script(snakemake.log[0]):
    would_move(
        store=snakemake.params.store,
        models=snakemake.params.models,
        models_dir=snakemake.params.models_dir,
        data_dir=snakemake.params.data_dir,
    )
