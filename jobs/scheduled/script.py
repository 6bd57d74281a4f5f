"""The script of a job: it calls the program, and puts the job back into the queue unless the job is over.

The commands of the scheduler that decide where and when a job goes on are called here, on the node: a container may not
have them. They are functions of bash (:attr:`jobs.study.scheduler.Scheduler.SHELL`), which set ``$job``, ``$index``
(its place in its array), ``$node`` and ``$restarts``, and define

    standing     prints ``running``; ``limit``: it is at its time limit, and can be put back; ``soon``: ask again later;
                 ``over``: the scheduler ends it, or has put it back. Fails if nobody answers
    put_back     puts the job back into the queue. Fails if that is refused
    job_nodes    prints the nodes of the job
    change LINE  changes the waiting job: ``memory_mb=N``, ``minutes=N`` or ``wait_s=N``
    avoid NODES  has the waiting job avoid nodes, if enough others like them are usable

What the program says is in files (:mod:`jobs.scheduled.slot`). Its exit code decides nothing, since a program may be
killed before it says anything.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from jobs.scheduled.slot import AGAIN, BEGUN, MOST_IDLE, NEWS, OVER, SICK

NOT_STARTED = 77
"""Exit code of ``launch`` if it starts nothing and the node may be well, such as while nobody answers."""
MOST_STARTS = 100
"""In how many starts a job goes on although its folder cannot be written, so that nothing counts its idle starts."""
REFUSALS = 4
"""How often the scheduler may refuse to put the job back. While it does not answer, the script asks on: nobody else
could have the node meanwhile."""
CHANGE = "(memory_mb|minutes|wait_s)=[0-9]+"
"""What a change of the job may be, as a regular expression: others may write to the file."""
NODE = "[A-Za-z0-9_.-]+"
"""What the name of a node may be, as a regular expression."""

_LINES = r"""
attend() (
trap : TERM INT  # which all processes of the job may get
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
if [ $n -gt 0 ]; then launch "$start" $node; code=$?; fi
if [ -s "$slot/@OVER" ]; then read -r code < "$slot/@OVER"; exit $code; fi
[ $n -eq 0 ] || [ ! -d "$slot/$((n + 1))" ] || exit $code  # the job has been started elsewhere

# how long nothing has come of it
idle=5
[ $n -eq 0 ] || for ((idle = 0; idle < n; idle++)); do [ ! -e "$slot/$((n - idle))/@NEWS" ] || break; done
if [ $idle -ge @MOST_IDLE ] || [ $n -eq 0 -a $restarts -ge @MOST_STARTS ]; then
    echo "this job gives up: nothing could be trained in its last starts"
    [ $code -gt 0 ] || code=1
    exit $code
fi

# the nodes to avoid
sick=()
if [ $n -eq 0 ]; then
    sick=("$node")
else
    begun=0
    for name in $(job_nodes); do
        if [ -e "$start/@BEGUN$name" ]; then begun=1; else sick+=("$name"); fi
    done
    # while nobody answers nothing starts, and a signal may be meant for an earlier start
    if [ $begun -eq 0 ] && [[ $code =~ ^(@NOT_STARTED|143)$ ]]; then sick=(); fi
    [ ! -f "$start/@SICK" ] || sick+=($(grep -xE '@NODE' "$start/@SICK"))
fi

# back into the queue
trap '' TERM INT  # which a requeue sends
refused=0 pause=1
while true; do
    if answer=$(standing); then
        case $answer in
        running | limit)
            put_back && break
            [ $answer = running ] || break  # the script has done it at SIGTERM
            refused=$((refused + 1))
            [ $refused -lt @REFUSALS ] || exit 137
            ;;
        soon) ;;  # it runs again
        *)
            [ $refused -gt 0 ] || exit $code  # it is ended, or has been put back
            break                             # the answer of a requeue was lost
            ;;
        esac
    fi
    sleep $pause
    [ $pause -ge 4 ] || pause=$((2 * pause))
done

if [ -f "$start/@AGAIN" ]; then
    grep -xE '@CHANGE' "$start/@AGAIN" | while read -r line; do change $line; done
fi
[ $idle -lt 3 ] || change wait_s=$((idle < 8 ? 15 << (idle - 1) : 1800))
if [ ${#sick[@]} -gt 0 ] && @MAY_AVOID; then avoid "${sick[@]}"; fi
exit 0
)

# At its time limit the scheduler ends the job: with SIGTERM, and later all that is left of it, this script too. It is
# put back at once, whatever the program waits for. Files may not answer: this process looks at none.
is_back=false
at_signal() {
    if ! $is_back && [ "$(standing)" = limit ]; then put_back && is_back=true; fi
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
    **{"CHANGE": CHANGE, "NOT_STARTED": str(NOT_STARTED)},
    **{"MOST_IDLE": str(MOST_IDLE), "MOST_STARTS": str(MOST_STARTS), "REFUSALS": str(REFUSALS)},
}


def job_lines(shell: str, slot: Path, launch: Sequence[str], *, may_avoid: bool) -> str:
    """Return what a job does, in bash.

    Args:
        shell: the functions of the scheduler.
        slot: the folder of the job, but for the number of the job in its array.
        launch: lines that start the program. ``$1`` is the folder of the start, and ``$2`` this node. They run in a
            subshell, so that a line of the user's own ``setup`` that fails or exits ends nothing else.
        may_avoid: whether nodes can be avoided: the settings name none.
    """
    lines = _LINES
    for name, value in sorted({**_VALUES, "MAY_AVOID": str(may_avoid).lower()}.items(), key=lambda one: -len(one[0])):
        lines = lines.replace(f"@{name}", value)
    head = f"slot={shlex.quote(str(slot))}-$index"
    return "\n".join([shell.strip(), "", head, "launch() (", "trap : TERM INT", *launch, ")", lines.strip()])
