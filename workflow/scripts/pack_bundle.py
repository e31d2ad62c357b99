from berth.bundle import pack_bundle
from berth.bundle_contents import BundleRequest
from berth.console import script

with script(snakemake.log[0]):
    pack_bundle(BundleRequest(**snakemake.params.request))
