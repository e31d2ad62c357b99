# Images: what a recipe's version runs in on one platform.
#
# Inputs:  config/recipes
# Outputs: results/images/{platform}/{recipe}-{version}.json, a receipt with reference, digest and path


rule stage_image:
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
        images_dir=lambda w: BERTH.platforms[w.platform].images_dir,
    script:
        "../scripts/stage_image.py"
