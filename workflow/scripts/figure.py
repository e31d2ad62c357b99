from berth.console import script
from berth.draw import figure

with script(snakemake.log[0]):
    figure(
        table=snakemake.input.table,
        published=snakemake.params.published,
        published_dir=snakemake.params.published_dir,
        experiment=snakemake.wildcards.experiment,
        kind=snakemake.wildcards.kind,
        title=snakemake.params.title,
        note=snakemake.params.note,
        outputs=list(snakemake.output),
    )
