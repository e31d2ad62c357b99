# How people reach a served deployment, ready to use, and whether each way works. No output, so that it always looks.
#
# Inputs:  results/services/{platform}/{deployment}.json of the deployments that --config deployment=NAME,... names
# Outputs: none that is tracked; results/access/{platform}/{deployment}/: ACCESS.md, curl.sh, openai_example.py,
#          tunnel.sh, server.conf, nginx.conf, nginx.sh, litellm/, and what follows the server: upstream.conf, endpoint, backends


localrules:
    access,


rule access:
    log:
        f"{RESULTS}/logs/access/{BERTH.platform}.log",
    conda:
        "../../environment.yml"
    params:
        report=f"{RESULTS}/logs/access/{BERTH.platform}.txt",
    script:
        "../scripts/access.py"
