from berth.console import script
from berth.stages import stage_image

with script(snakemake.log[0]):
    stage_image(
        snakemake.params.image,
        snakemake.params.request,
        snakemake.params.images_dir,
        snakemake.output.receipt,
        "".join(snakemake.input),
    )
