from pathlib import Path

from berth.analysis import CrossCheckSettings
from berth.console import script
from berth.crosscheck import cross_check
from berth.sweep import SweepRequest

with script(snakemake.log[0]):
    cross_check(
        SweepRequest(
            **snakemake.params.request,
            model_receipt=snakemake.input.model,
            image_receipt=snakemake.input.image,
            dataset_receipt=snakemake.input.dataset,
        ),
        CrossCheckSettings(**snakemake.params.settings),
        Path(snakemake.output.page).parent,
    )
