from berth.ceiling import client_ceiling
from berth.console import script
from berth.sweep import SweepRequest

with script(snakemake.log[0]):
    client_ceiling(
        SweepRequest(
            **snakemake.params.request,
            model_receipt=snakemake.input.model,
            image_receipt=snakemake.input.image,
            dataset_receipt=snakemake.input.dataset,
        )
    )
