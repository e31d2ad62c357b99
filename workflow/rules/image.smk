# Images: what a recipe's version runs in on one platform. A container image goes into the site's registry, where the
# platform has one, and from there onto the cluster, once.
#
# Inputs:  config/recipes, config/platforms
# Outputs: results/mirrored/{platform}/{recipe}-{version}.json and results/images/{platform}/{recipe}-{version}.json,
#          receipts with reference, digest and path


# It needs a way to the internet, which compute nodes often have not.
localrules:
    mirror_image,


rule mirror_image:
    output:
        receipt=f"{RESULTS}/mirrored/{{platform}}/{{recipe}}-{{version}}.json",
    log:
        f"{RESULTS}/logs/mirror_image/{{platform}}/{{recipe}}-{{version}}.log",
    conda:
        "../../environment.yml"
    params:
        request=lambda w: PLAN.image_request(w.platform, w.recipe, w.version),
    script:
        "../scripts/mirror_image.py"


rule stage_image:
    input:
        mirrored=mirrored_image,
    output:
        receipt=f"{RESULTS}/images/{{platform}}/{{recipe}}-{{version}}.json",
    log:
        f"{RESULTS}/logs/stage_image/{{platform}}/{{recipe}}-{{version}}.log",
    conda:
        "../../environment.yml"
    resources:
        **resources_of_staging(),
    params:
        image=lambda w: PLAN.image(w.platform, w.recipe, w.version),
        request=lambda w: PLAN.image_request(w.platform, w.recipe, w.version),
        images_dir=lambda w: BERTH.platforms[w.platform].images_dir,
    script:
        "../scripts/stage_image.py"
