"""The script of a job: it calls the program, and puts the job back into the queue unless the job is over.

The commands of SLURM that decide where and when a job goes on are called here, on the node: a container may not have
them. What the program says is in files (:mod:`slurm.slot`). Its exit code decides nothing, since a program may be
killed before it says anything.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from slurm.slot import AGAIN, BEGUN, MOST_IDLE, NEWS, OVER, SICK

NOT_STARTED = 77
"""Exit code of srun if it starts nothing (SLURM_EXIT_ERROR), such as while slurmctld does not answer."""
MOST_STARTS = 100
"""In how many starts a job goes on although its folder cannot be written, so that nothing counts its idle starts."""
REFUSALS = 4
"""How often SLURM may refuse to put the job back. While it does not answer, the script asks on: nobody else could have
the node meanwhile."""
CHANGE = "(MinMemoryNode|TimeLimit|StartTime)=[^ ]+"
"""What a change of the job may be, as a regular expression: others may write to the file."""
USABLE = "(idle|mix|alloc|comp|plnd)[~#+-]*"
"""States of a node on which jobs can start, as sinfo abbreviates them."""
NODE = "[A-Za-z0-9_.-]+"
"""What the name of a node may be, as a regular expression."""

_LINES = r"""
standing() {  # a node may lack the command
    if command -v squeue > /dev/null; then squeue -h -j $job -o '%T|%r|%x'; else echo 'RUNNING|None|'; fi
}

attend() (
trap : TERM INT  # SLURM sends them to all processes
if [ -s "$slot/@OVER" ]; then read -r code < "$slot/@OVER"; exit $code; fi

# the number of this start, and its folder; 0: it cannot be made
n=0
for seconds in 0 1 2 4 8; do
    sleep $seconds
    [ -d "$slot" ] || mkdir "$slot" || continue
    n=1
    until mkdir "$slot/$n" 2> /dev/null; do
        [ -d "$slot/$n" ] || { n=0; break; }
        n=$((n + 1))
    done
    [ $n -eq 0 ] || break
done
start=$slot/$n

code=1
if [ $n -gt 0 ]; then launch "$start"; code=$?; fi
if [ -s "$slot/@OVER" ]; then read -r code < "$slot/@OVER"; exit $code; fi
[ $n -eq 0 ] || [ ! -d "$slot/$((n + 1))" ] || exit $code  # SLURM has started the job elsewhere

# how long nothing has come of it
idle=5
[ $n -eq 0 ] || for ((idle = 0; idle < n; idle++)); do [ ! -e "$slot/$((n - idle))/@NEWS" ] || break; done
if [ $idle -ge @MOST_IDLE ] || [ $n -eq 0 -a ${SLURM_RESTART_COUNT:-0} -ge @MOST_STARTS ]; then
    echo "this job gives up: nothing could be trained in its last starts"
    [ $code -gt 0 ] || code=1
    exit $code
fi

# the nodes to avoid
sick=()
if [ $n -eq 0 ]; then
    sick=("$SLURMD_NODENAME")
else
    begun=0
    for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
        if [ -e "$start/@BEGUN$node" ]; then begun=1; else sick+=("$node"); fi
    done
    # without the controller srun starts nothing, and a signal may be meant for an earlier start
    if [ $begun -eq 0 ] && [[ $code =~ ^(@NOT_STARTED|143)$ ]]; then sick=(); fi
    [ ! -f "$start/@SICK" ] || sick+=($(grep -xE '@NODE' "$start/@SICK"))
fi

# back into the queue
trap '' TERM INT  # which a requeue sends
refused=0 pause=1
while true; do
    if answer=$(standing); then
        case $answer in
        'RUNNING|'* | 'COMPLETING|TimeLimit|'*)
            scontrol requeue $job && break
            [[ $answer != COMPLETING* ]] || break  # the script has done it at SIGTERM
            refused=$((refused + 1))
            [ $refused -lt @REFUSALS ] || exit 137
            ;;
        'SIGNALING|'* | 'SUSPENDED|'* | 'STOPPED|'* | 'RESIZING|'*) ;;  # it runs again soon
        *)
            [ $refused -gt 0 ] || exit $code  # SLURM ends the job, or has put it back
            break                             # the answer of a requeue was lost
            ;;
        esac
    fi
    sleep $pause
    [ $pause -ge 4 ] || pause=$((2 * pause))
done

change() { scontrol update JobId=$job $1; }
if [ -f "$start/@AGAIN" ]; then
    grep -xE '@CHANGE' "$start/@AGAIN" | while read -r line; do change $line; done
fi
[ $idle -lt 3 ] || change StartTime=now+$((idle < 8 ? 15 << (idle - 1) : 1800))
if [ ${#sick[@]} -gt 0 ] && @MAY_AVOID; then
    avoided=$(scontrol show hostnames "${answer##*|}")
    avoided=" $(echo $avoided ${sick[*]}) "
    nodes=$(sinfo -N -h -p $SLURM_JOB_PARTITION -o '%N|%t|%c|%m|%G|%f') wanted= left=0
    while IFS='|' read -r node state kind; do
        [ "$node" != $SLURMD_NODENAME ] || wanted=$kind
    done <<< "$nodes"
    while IFS='|' read -r node state kind; do
        if [ "$kind" = "$wanted" ] && [[ $state =~ ^@USABLE$ ]] && [[ $avoided != *" $node "* ]]; then
            left=$((left + 1))
        fi
    done <<< "$nodes"
    if [ $left -ge $SLURM_JOB_NUM_NODES ]; then
        list=$(echo $avoided)
        change ExcNodeList=${list// /,}
    else
        echo "not avoided, since too few other nodes like it are usable: ${sick[*]}"
    fi
fi
exit 0
)

# At its time limit SLURM ends the job: with SIGTERM, and later all that is left of it, this script too. It is put back
# at once, whatever the program waits for. Files may not answer: this process looks at none.
is_back=false
at_signal() {
    if ! $is_back && [[ $(standing) == 'COMPLETING|TimeLimit|'* ]]; then scontrol requeue $job && is_back=true; fi
}
trap at_signal TERM
attend &
while true; do
    wait $!; code=$?
    kill -0 $! 2> /dev/null || exit $code  # else a signal has ended the waiting
done
"""
_VALUES = {
    **{"OVER": OVER, "NEWS": NEWS, "BEGUN": BEGUN, "SICK": SICK, "AGAIN": AGAIN, "NODE": NODE},
    **{"CHANGE": CHANGE, "USABLE": USABLE, "NOT_STARTED": str(NOT_STARTED)},
    **{"MOST_IDLE": str(MOST_IDLE), "MOST_STARTS": str(MOST_STARTS), "REFUSALS": str(REFUSALS)},
}


def job_lines(slot: Path, launch: Sequence[str], *, may_avoid: bool) -> str:
    """Return what a job does, in bash.

    Args:
        slot: the folder of the job, but for the number of the job in its array.
        launch: lines that start the program. ``$1`` is the folder of the start. They run in a subshell, so that a line
            of the user's own ``setup`` that fails or exits ends nothing else.
        may_avoid: whether nodes can be excluded: the settings name none.
    """
    lines = _LINES
    for name, value in sorted({**_VALUES, "MAY_AVOID": str(may_avoid).lower()}.items(), key=lambda one: -len(one[0])):
        lines = lines.replace(f"@{name}", value)
    head = f"job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID slot={shlex.quote(str(slot))}-$SLURM_ARRAY_TASK_ID"
    return "\n".join([head, "launch() (", "trap : TERM INT", *launch, ")", lines.strip()])
