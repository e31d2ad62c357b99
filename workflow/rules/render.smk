# What would run, readable, without running it.
#
# Inputs:  config/
# Outputs: results/render/{platform}/{deployment}/: server.sh, client.sh, stage.sh, settings.md, values.json;
#          for Kubernetes values.yaml, install.sh, uninstall.sh, stage.sh, settings.md, values.json, manifests.yaml


localrules:
    render,
    render_deployment,


# `snakemake render` writes the files of every deployment on the platform at hand.
rule render:
    input:
        rendered_folders,
    log:
        f"{RESULTS}/logs/render/all.log",
    conda:
        "../../environment.yml"
    params:
        left_out=lambda w: left_out(),
    script:
        "../scripts/render_all.py"


rule render_deployment:
    output:
        directory(f"{RESULTS}/render/{{platform}}/{{deployment}}"),
    log:
        f"{RESULTS}/logs/render/{{platform}}/{{deployment}}.log",
    wildcard_constraints:
        deployment=NAME,
    conda:
        "../../environment.yml"
    params:
        # The texts themselves: whatever would change them, a newer Berth included, renders them again.
        texts=lambda w: rendered(w.deployment)[0],
        warnings=lambda w: rendered(w.deployment)[1],
        # The command that prints the manifests: where helm is installed later, they are rendered then.
        manifests=lambda w: manifests_command(w.deployment),
    script:
        "../scripts/render.py"
