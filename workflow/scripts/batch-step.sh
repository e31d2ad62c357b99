# Sourced by the script of a job before everything else (`precommand` in the profiles). POSIX sh.
#
# A scheduler's warning before the end, and its first TERM, reach the shell of a batch step and no other process. A
# shell that waits for a command in the foreground acts on no signal before that command has ended, and one that ends
# at once takes its job along. So this shell runs the job's script once more as a child, stays free to act, passes what
# it gets to the sweep (which wrote its process id into $BERTH_BATCH_PID), and ends when the sweep has cleaned up.

# Elsewhere than in a job, and in the child, nothing happens. A shell that was started with -c has no script. In a batch
# script of Flux FLUX_JOB_ID is not set: the job is the instance around it, which later versions name.
if [ -n "${SLURM_JOB_ID:-}${FLUX_JOB_ID:-}${FLUX_ENCLOSING_ID:-}${FLUX_URI:-}" ] && [ -z "${BERTH_BATCH_PID:-}" ] \
    && [ "$(head -c 2 "$0" 2>/dev/null | tr -d '\0')" = '#!' ]; then
    BERTH_BATCH_PID=$(mktemp "${TMPDIR:-/tmp}/berth-batch.XXXXXX") || exit 1
    export BERTH_BATCH_PID

    berth_sweep() { cat "$BERTH_BATCH_PID" 2>/dev/null; }
    # Before the sweep has told its process there is nothing to clean up: the child ends, and the job with it.
    berth_warned() {
        echo "berth: the scheduler asks this job to end; the sweep stops and keeps every finished point" >&2
        pid=$(berth_sweep)
        kill -TERM "${pid:-$berth_child}" 2>/dev/null
    }

    sh "$0" &
    berth_child=$!
    trap berth_warned TERM USR1 INT HUP
    berth_code=0
    # A signal ends `wait` early; the child is still there then.
    while kill -0 "$berth_child" 2>/dev/null; do
        wait "$berth_child"
        berth_code=$?
    done
    # Whatever stood between may have been ended by the same signal, while the sweep takes its server down.
    while pid=$(berth_sweep) && [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; do
        sleep 0.2
    done
    rm -f "$BERTH_BATCH_PID"
    exit "$berth_code"
fi
