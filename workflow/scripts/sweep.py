from pathlib import Path

from berth.console import script
from berth.sweep import SweepRequest, sweep

with script(snakemake.log[0]):
    sweep(
        SweepRequest(
            **snakemake.params.request,
            model_receipt=snakemake.input.model,
            image_receipt=snakemake.input.image,
            dataset_receipt=snakemake.input.dataset,
        ),
    )
    Path(snakemake.output.marker).touch()
