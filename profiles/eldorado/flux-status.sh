#!/bin/sh
# flux-status.sh ID: prints running, success or failed, which is what Snakemake's cluster-generic executor knows.
#
# States of a job are NEW DEPEND PRIORITY SCHED RUN CLEANUP INACTIVE; only an INACTIVE one has a result, which is COMPLETED
# FAILED CANCELED or TIMEOUT. In CLEANUP the processes are gone and the result is not final yet.
set -u
id=$1
tries=0
while :; do
    # -n leaves the header out (its long name changed between versions); a job named by id is listed in any state.
    told=$(flux jobs -n -o '{state} {result}' "$id" 2>&1) && break
    tries=$((tries + 1))
    # Flux that is restarted or busy is no failed job; a job that Flux does not know is.
    if [ "$tries" -ge "${BERTH_FLUX_TRIES:-5}" ]; then
        echo "flux-status.sh: flux jobs $id: $told" >&2
        echo failed
        exit 0
    fi
    sleep "${BERTH_FLUX_PAUSE_S:-5}"
done
case $told in
    'INACTIVE COMPLETED'*) echo success ;;
    'INACTIVE FAILED'* | 'INACTIVE CANCELED'* | 'INACTIVE TIMEOUT'*) echo failed ;;
    NEW* | DEPEND* | PRIORITY* | SCHED* | RUN* | CLEANUP*) echo running ;;
    *)
        echo "flux-status.sh: flux jobs $id printed '$told', which is no state that is known here" >&2
        echo failed
        ;;
esac
