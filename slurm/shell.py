"""What the script of a job asks SLURM, as functions of bash: :attr:`jobs.study.scheduler.Scheduler.SHELL`."""

USABLE = "(idle|mix|alloc|comp|plnd)[~#+-]*"
"""States of a node on which jobs can start, as sinfo abbreviates them."""

SHELL = r"""
job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID index=$SLURM_ARRAY_TASK_ID
node=$SLURMD_NODENAME restarts=${SLURM_RESTART_COUNT:-0}

standing() {  # a node may lack the command
    local answer='RUNNING|None'
    if command -v squeue > /dev/null; then answer=$(squeue -h -j $job -o '%T|%r') || return 1; fi
    case $answer in
    'RUNNING|'*) echo running ;;
    'COMPLETING|TimeLimit') echo limit ;;
    'SIGNALING|'* | 'SUSPENDED|'* | 'STOPPED|'* | 'RESIZING|'*) echo soon ;;
    *) echo over ;;
    esac
}

put_back() { scontrol requeue $job; }

job_nodes() { scontrol show hostnames "$SLURM_JOB_NODELIST"; }

change() {
    local name=${1%%=*} amount=${1#*=}
    case $name in
    memory_mb) scontrol update JobId=$job MinMemoryNode=$amount ;;
    minutes) scontrol update JobId=$job TimeLimit=$amount ;;
    wait_s) scontrol update JobId=$job StartTime=now+$amount ;;
    esac
}

avoid() {  # unless too few other nodes like this one are usable
    local excluded avoided nodes name state kind wanted= left=0
    excluded=$(squeue -h -j $job -o %x)
    avoided=$(scontrol show hostnames "$excluded")
    avoided=" $(echo $avoided $*) "
    nodes=$(sinfo -N -h -p $SLURM_JOB_PARTITION -o '%N|%t|%c|%m|%G|%f')
    while IFS='|' read -r name state kind; do
        [ "$name" != $node ] || wanted=$kind
    done <<< "$nodes"
    while IFS='|' read -r name state kind; do
        if [ "$kind" = "$wanted" ] && [[ $state =~ ^@USABLE$ ]] && [[ $avoided != *" $name "* ]]; then
            left=$((left + 1))
        fi
    done <<< "$nodes"
    if [ $left -ge $SLURM_JOB_NUM_NODES ]; then
        avoided=$(echo $avoided)
        scontrol update JobId=$job ExcNodeList=${avoided// /,}
    else
        echo "not avoided, since too few other nodes like it are usable: $*"
    fi
}
""".replace("@USABLE", USABLE)
