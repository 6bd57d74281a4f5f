"""What SLURM does, as scenarios that are played on the model and on a real SLURM (:mod:`tests.simulation.players`).

A scenario is a list of steps, one a line. Each plays on nodes of its own.

    a = sbatch OPTIONS | STATEMENT; ...   submit an array, whose script starts a program with ``srun`` on each node. The
                                          program has its job put back with exit code 76. With ``--back`` the script
                                          itself does so at SIGTERM. With ``pause=S`` the script waits before it calls
                                          ``srun``. On several nodes it prints what ``srun`` returns.
    a = plain OPTIONS | STATEMENT; ...    submit a job that is no array, whose script is the program
    wait a STATE                          until all jobs of ``a``, or the job ``a_0``, are in a state
    wait a AGAIN                          until they wait once more
    wait a says WORDS                     until the program of ``a`` has printed the words
    rows a                                note the rows of squeue: job, state, reason
    says a                                note what the programs of ``a`` have printed
    json a_0                              note the state flags of ``scontrol --json``
    run WORDS                             run a command; note exit code, output and the last line of the complaint
    let NAME                              have programs go on that wait for the name
    sleep SECONDS
    preempt a_0                           a job of higher rank takes its node
    down n1 / up n1                       the administrator takes a node for lost; its jobs live, or
    lose n1 / up n1                       it loses power and the administrator takes it for lost
    die n1 / up n1                        it loses power, and the controller has not noticed that yet
    cut n1 / join n1                      nobody reaches the node for a moment
    hang / go                             the controller answers nothing; it comes back
    hang SECONDS                          the same by itself
    kill / start                          the controller is gone; it comes back

A program is a list of statements: ``print WORDS``, ``sleep SECONDS``, ``until NAME``, ``exit CODE``, ``raise SIGNAL``,
``change LINE`` (a line of the file of changes), ``leave SECONDS`` (a process that prints later), ``ignore SIGNAL``,
``on SIGNAL exit CODE`` (and prints it). ``start N:`` and ``node N:`` in front of a statement say in which start of the
job, and on which of its nodes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A scenario."""

    steps: str
    nodes: int = 1
    rules: str = "usual"
    """Which cluster plays it: that of :data:`tests.simulation.players.RULES` with this name."""
    is_first: bool = False
    """Whether it is over before the others of its cluster begin, as it counts the jobs of the user."""


NOT_ASKED = {
    "Cluster.running": "helps stories",
    "Cluster.add_other": "helps stories: a job of the user's that has nothing to do with a study",
    "Cluster.lose": "the controller notices a lost node after SlurmdTimeout; in scenarios the administrator is quicker",
    "Cluster.cut_off": "the same",
    "Cluster.cut_off.back": "the same",
    "Cluster._hear_again": "an end that the controller hears of late: a test cluster has no network that could be cut",
    "Cluster._without_answer": "the product's own timeout, which is no matter of SLURM",
    "Cluster._start": "too many starts of a job fail the story",
    "Script.attend": "scripts of scenarios and of jobs have their own",
    "Cluster._scontrol": "a command that the model does not know fails the story",
    "a node that loses power": "a test cluster kills its processes, so their connections are closed, not silent",
    "Cluster.end_for_memory": "OUT_OF_MEMORY: a test cluster has no control groups, so it limits no memory",
    "another user": "a test cluster answers root alone. A user may not raise TimeLimit of a job that runs",
    "the time of things": "when the scheduler looks, when a limit strikes: from the manual and slurmctld's constants",
}
"""What no scenario asks of a real SLURM -> why. A name with a dot is a function of the model with such lines."""

SCENARIOS = {
    "the exit code of the program is the end of the job": Scenario(
        steps="""
        a = sbatch | sleep 1
        b = sbatch | exit 1
        c = sbatch | exit 3
        d = sbatch | raise KILL
        e = sbatch | raise ABRT
        f = plain | exit 2
        g = plain | print $SLURM_JOB_NUM_NODES
        wait a COMPLETED
        wait b FAILED
        wait c FAILED
        wait d FAILED
        wait e FAILED
        wait f FAILED
        wait g COMPLETED
        rows a
        rows b
        rows c
        rows d
        rows e
        rows f
        rows g
        says g
        json a_0
        json b_0
        json d_0
        """,
    ),
    "what a program sees": Scenario(
        steps="""
        a = sbatch --array=0-1 --mem=100M --cpus-per-task=2 | print $SLURM_ARRAY_TASK_ID of $SLURM_ARRAY_TASK_COUNT; \
print nodes $SLURM_JOB_NUM_NODES node $SLURM_NODEID; print partition $SLURM_JOB_PARTITION; \
print memory $SLURM_MEM_PER_NODE; print restart <$SLURM_RESTART_COUNT>; print gpus <$CUDA_VISIBLE_DEVICES>; \
print on $SLURMD_NODENAME; print ends $((($SLURM_JOB_END_TIME-$NOW+30)/60)); print array $SLURM_ARRAY_JOB_ID; \
print job $SLURM_JOB_ID
        c = sbatch --gpus-per-node=1 | print gpus <$CUDA_VISIBLE_DEVICES>; sleep 3
        wait c RUNNING
        d = sbatch --gpus-per-node=1 | print gpus <$CUDA_VISIBLE_DEVICES>; sleep 1
        wait d COMPLETED
        says c
        says d
        b = sbatch --gpus-per-node=2 | print gpus <$CUDA_VISIBLE_DEVICES>; print memory <$SLURM_MEM_PER_NODE>
        wait a COMPLETED
        wait b COMPLETED
        says a
        says b
        """,
    ),
    "a program asks for another start": Scenario(
        steps="""
        a = sbatch | print start <$SLURM_RESTART_COUNT>; start 0: exit 76; start 1: exit 76; sleep 1
        wait a AGAIN
        rows a
        wait a COMPLETED
        rows a
        says a
        """,
    ),
    "a program asks for another start and changes its job": Scenario(
        steps="""
        a = sbatch --mem=100M | print memory $SLURM_MEM_PER_NODE; start 0: print on $SLURMD_NODENAME; \
start 0: change MinMemoryNode=200; start 0: change TimeLimit=7; start 0: change Nice=9; start 0: change rm -rf x; \
start 0: change StartTime=now+9 ExcNodeList={n1}; start 0: exit 76; print on $SLURMD_NODENAME; sleep 2
        wait a AGAIN
        rows a
        run squeue -h -j {a_0} -o %T|%x
        wait a says on
        run squeue -h -r -j {a} -o %i|%T|%l
        wait a COMPLETED
        says a
        """,
        nodes=2,
    ),
    "SIGTERM from nowhere": Scenario(
        steps="""
        a = sbatch | print start <$SLURM_RESTART_COUNT>; start 0: raise TERM; sleep 1
        wait a AGAIN
        wait a COMPLETED
        rows a
        says a
        """,
    ),
    "what a program has started is killed with its job": Scenario(
        steps="""
        a = sbatch | leave 40; ignore TERM; print begins; sleep 280
        wait a says begins
        run scancel --quiet {a}
        wait a CANCELLED
        sleep 40
        says a
        """,
    ),
    "hold and release": Scenario(
        steps="""
        a = sbatch --hold | sleep 1
        b = sbatch --hold --array=0-1 | sleep 1
        rows a
        rows b
        run scontrol release {a},{b}
        wait a COMPLETED
        wait b COMPLETED
        rows b
        """,
    ),
    "afterok and afterany": Scenario(
        steps="""
        a = sbatch | until go
        b = sbatch | until go; exit 1
        c = sbatch --dependency=afterok:{a} | sleep 1
        d = sbatch --dependency=afterany:{b} | sleep 1
        e = sbatch --dependency=afterok:{a}:{b} | sleep 1
        f = sbatch --dependency=afterok:{a},afterany:{b} | sleep 1
        g = plain --dependency=afterany:{a}:{b} | sleep 1
        wait a RUNNING
        sleep 1
        rows c
        rows d
        rows e
        rows f
        rows g
        let go
        wait a COMPLETED
        wait b FAILED
        wait c COMPLETED
        wait d COMPLETED
        wait f COMPLETED
        wait g COMPLETED
        sleep 2
        rows e
        """,
    ),
    "a dependency on an array, part of which fails or is cancelled": Scenario(
        steps="""
        a = sbatch --array=0-2 | sleep 2; print $SLURM_ARRAY_TASK_ID; exit $((SLURM_ARRAY_TASK_ID==1))
        b = sbatch --dependency=afterok:{a} | sleep 1
        c = sbatch --dependency=afterany:{a} | sleep 1
        d = sbatch --hold --array=0-1 | sleep 1
        e = sbatch --dependency=afterok:{d} | sleep 1
        f = sbatch --dependency=afterany:{d} | sleep 1
        sleep 2
        rows e
        run scancel --quiet {d}
        wait c COMPLETED
        wait f COMPLETED
        sleep 2
        rows a
        rows b
        rows d
        rows e
        """,
    ),
    "a dependency on an array, a waiting job of which is cancelled": Scenario(
        steps="""
        a = sbatch --array=0-2 --cpus-per-task=8 | until go
        b = sbatch --dependency=afterok:{a} | sleep 1
        c = sbatch --dependency=afterany:{a} | sleep 1
        wait a_0 RUNNING
        run scancel --quiet {a_2}
        rows a
        let go
        wait c COMPLETED
        sleep 2
        rows a
        rows b
        """,
    ),
    "a dependency on a job that is requeued": Scenario(
        steps="""
        a = sbatch | start 0: exit 76; sleep 1
        b = sbatch --dependency=afterok:{a} | sleep 1
        c = sbatch --dependency=afterany:{a} | sleep 1
        wait a AGAIN
        rows b
        rows c
        wait b COMPLETED
        wait c COMPLETED
        """,
    ),
    "a dependency on jobs that nobody knows": Scenario(
        steps="""
        a = sbatch --dependency=afterok:999999 | sleep 1
        b = sbatch --dependency=afterany:999999 | sleep 1
        """,
    ),
    "no more jobs of an array at once than it says": Scenario(
        steps="""
        a = sbatch --array=0-3%2 | until go$SLURM_ARRAY_TASK_ID
        wait a_1 RUNNING
        rows a
        run squeue -h -a -t PD -j {a} -o %F
        let go0
        let go1
        let go2
        wait a_2 COMPLETED
        wait a_3 RUNNING
        rows a
        let go3
        wait a COMPLETED
        """,
    ),
    "the nicer job waits longer": Scenario(
        steps="""
        a = sbatch --cpus-per-task=8 | until a
        wait a RUNNING
        b = sbatch --cpus-per-task=8 --nice=1000 | until b
        c = sbatch --cpus-per-task=8 | until c
        d = sbatch --cpus-per-task=8 --nice=500 | until d
        sleep 1
        rows b
        rows c
        let a
        wait c RUNNING
        rows b
        rows d
        let c
        wait d RUNNING
        rows b
        let d
        wait b RUNNING
        let b
        wait b COMPLETED
        """,
    ),
    "jobs of one array wait in their order": Scenario(
        steps="""
        a = sbatch --array=0-2 --cpus-per-task=8 | until go$SLURM_ARRAY_TASK_ID
        wait a_0 RUNNING
        rows a
        let go0
        wait a_1 RUNNING
        rows a_2
        let go1
        let go2
        wait a COMPLETED
        """,
    ),
    "scancel by state": Scenario(
        steps="""
        a = sbatch --hold | sleep 1
        b = sbatch | on TERM exit 0; print begins; sleep 280
        c = sbatch | ignore TERM; print begins; sleep 280
        d = sbatch --array=0-2 | print begins; sleep 280
        e = sbatch | sleep 1
        f = plain | on TERM exit 5; print begins; sleep 280
        wait b says begins
        wait c says begins
        wait d says begins
        wait f says begins
        wait e COMPLETED
        run scancel --quiet {a}
        rows a
        run scancel --quiet {b} {c} {d_1} {f}
        json c_0
        wait b CANCELLED
        wait c CANCELLED
        wait d_1 CANCELLED
        wait f CANCELLED
        rows b
        rows c
        rows d
        rows f
        says b
        says c
        says f
        run scancel --quiet {a} {e}
        rows e
        run scancel --quiet 999999
        run scancel {b}
        run scancel 999999
        run scancel --quiet {d}
        wait d CANCELLED
        rows d
        """,
    ),
    "scancel of a job that completes": Scenario(
        steps="""
        a = sbatch | ignore TERM; print begins; sleep 280
        wait a says begins
        run scontrol requeue {a_0}
        json a_0
        rows a
        run squeue -h -r -t PENDING,RUNNING,SUSPENDED -o %i|%T -j {a}
        run squeue -h -j {a} -o %T
        run scancel --quiet {a}
        json a_0
        run scontrol requeue {a_0}
        json a_0
        wait a AGAIN
        """,
    ),
    "a requeue by hand": Scenario(
        steps="""
        a = sbatch | on TERM exit 0; print start <$SLURM_RESTART_COUNT>; start 0: sleep 280; sleep 1
        wait a says start
        run scontrol requeue {a_0}
        wait a AGAIN
        rows a
        wait a COMPLETED
        rows a
        says a
        """,
    ),
    "requeues that SLURM refuses": Scenario(
        steps="""
        a = sbatch --hold | sleep 1
        b = sbatch | ignore TERM; print begins; start 0: sleep 280; sleep 3
        c = sbatch --no-requeue | print begins; sleep 280
        d = sbatch | exit 0
        wait b says begins
        wait c says begins
        wait d COMPLETED
        run scontrol requeue {a_0}
        run scontrol requeue {b_0}
        run scontrol requeue {b_0}
        run scontrol requeue {c_0}
        run scontrol requeue 999999_0
        run scontrol update JobId=999999_0 TimeLimit=3
        run scontrol release 999999
        wait b RUNNING
        wait b COMPLETED
        rows c
        run scontrol requeue {d_0}
        wait d AGAIN
        wait d COMPLETED
        run scancel --quiet {c}
        """,
    ),
    "the program ends for good while a requeue by hand waits for it": Scenario(
        steps="""
        a = sbatch | on TERM exit 1; print start <$SLURM_RESTART_COUNT>; start 0: sleep 280; sleep 1
        wait a says start
        run scontrol requeue {a_0}
        wait a COMPLETED
        rows a
        """,
    ),
    "a warning before the time limit": Scenario(
        steps="""
        a = sbatch --signal=USR2@1 | on USR2 exit 76; print begins <$SLURM_RESTART_COUNT>; start 0: sleep 280; sleep 1
        wait a says begins
        run scontrol update JobId={a_0} EndTime=now+33
        wait a AGAIN
        rows a
        wait a COMPLETED
        rows a
        """,
    ),
    "a time limit": Scenario(
        steps="""
        a = sbatch --signal=USR2@1 | ignore USR2; print begins; sleep 280
        b = sbatch --signal=USR2@1 | ignore USR2; ignore TERM; print begins; sleep 280
        c = sbatch --signal=USR2@1 | ignore USR2; on TERM exit 0; print begins; sleep 280
        d = plain | print begins; sleep 280
        wait a says begins
        wait b says begins
        wait c says begins
        wait d says begins
        run scontrol update JobId={a_0} EndTime=now+4
        run scontrol update JobId={b_0} EndTime=now+4
        run scontrol update JobId={c_0} EndTime=now+4
        run scontrol update JobId={d} EndTime=now+4
        wait b COMPLETING
        json b_0
        wait a TIMEOUT
        wait b TIMEOUT
        wait c TIMEOUT
        wait d TIMEOUT
        rows a
        rows b
        rows c
        rows d
        """,
    ),
    "a script puts its job back when its time is up": Scenario(
        steps="""
        a = sbatch --back --signal=USR2@1 | ignore USR2; print begins <$SLURM_RESTART_COUNT>; start 0: sleep 280; \
sleep 1
        b = sbatch --back --signal=USR2@1 | ignore USR2; ignore TERM; print begins <$SLURM_RESTART_COUNT>; \
start 0: sleep 280; sleep 1
        wait a says begins
        wait b says begins
        run scontrol update JobId={a_0} EndTime=now+4
        run scontrol update JobId={b_0} EndTime=now+4
        wait a AGAIN
        wait b AGAIN
        rows a
        rows b
        wait a COMPLETED
        wait b COMPLETED
        says a
        says b
        """,
    ),
    "preemption": Scenario(
        steps="""
        a = sbatch | on USR2 exit 76; print start <$SLURM_RESTART_COUNT>; start 0: sleep 280; \
start 1: sleep 30; sleep 1
        wait a says start
        preempt a_0
        wait a AGAIN
        rows a
        wait a COMPLETED
        rows a
        says a
        """,
    ),
    "preemption of a job that does not end": Scenario(
        steps="""
        a = sbatch | ignore USR2; ignore TERM; print begins; start 0: sleep 280; start 1: sleep 30; sleep 1
        wait a says begins
        preempt a_0
        wait a COMPLETING
        json a_0
        """,
    ),
    "preemption of a job that goes on": Scenario(
        steps="""
        a = sbatch | ignore USR2; on TERM exit 3; print start <$SLURM_RESTART_COUNT>; start 0: sleep 280; \
start 1: sleep 30; sleep 1
        wait a says start
        preempt a_0
        wait a AGAIN
        rows a
        wait a COMPLETED
        rows a
        says a
        """,
    ),
    "a node that is lost, and its jobs with it": Scenario(
        steps="""
        a = sbatch | print start <$SLURM_RESTART_COUNT>; start 0: sleep 280; sleep 1
        b = sbatch --no-requeue | print begins; sleep 280
        c = sbatch --array=0-1 | print begins; start 0: sleep 280; sleep 1
        wait a says start
        wait b says begins
        wait c says begins
        lose n1
        sleep 1
        rows a
        rows b
        rows c
        up n1
        wait a COMPLETED
        wait c COMPLETED
        rows a
        rows b
        rows c
        says a
        """,
    ),
    "a node that is taken for lost while its jobs live": Scenario(
        steps="""
        a = plain --requeue --open-mode=append | print start <$SLURM_RESTART_COUNT> on $SLURMD_NODENAME; \
start 0: sleep 40; sleep 1
        wait a says start
        down n1
        wait a says start <1>
        wait a COMPLETED
        up n1
        sleep 3
        rows a
        says a
        """,
        nodes=2,
    ),
    "a node that nobody reaches for a moment": Scenario(
        steps="""
        a = sbatch | print start <$SLURM_RESTART_COUNT>; sleep 6
        wait a says start
        cut n1
        sleep 2
        rows a
        join n1
        wait a COMPLETED
        rows a
        says a
        """,
    ),
    "a job of two nodes": Scenario(
        steps="""
        a = sbatch --nodes=2 | print node $SLURM_NODEID of $SLURM_JOB_NUM_NODES; print on $SLURMD_NODENAME; sleep 1
        b = sbatch --nodes=2 | node 1: exit 0; sleep 14; print late
        c = sbatch --nodes=2 | node 0: exit 0; on TERM exit 0; sleep 14; print late
        d = sbatch --nodes=2 | node 1: exit 3; sleep 2
        e = sbatch --nodes=2 | node 1: raise KILL; sleep 2
        f = sbatch --nodes=2 | node 0: exit 76; sleep 2; exit 0
        wait a COMPLETED
        says a
        wait d FAILED
        rows d
        wait e FAILED
        rows e
        wait f AGAIN
        rows f
        wait b FAILED
        rows b
        says b
        wait c FAILED
        rows c
        says c
        """,
        nodes=2,
    ),
    "a job of two nodes, with srun's --kill-on-bad-exit": Scenario(
        steps="""
        a = sbatch --nodes=2 srun=--kill-on-bad-exit=1 | node 1: sleep 1; node 1: exit 7; on TERM exit 0; sleep 280
        b = sbatch --nodes=2 srun=--kill-on-bad-exit=1 | node 1: exit 0; sleep 3; print late
        wait a FAILED
        rows a
        says a
        wait b COMPLETED
        rows b
        says b
        """,
        nodes=2,
    ),
    "a job of two nodes loses the second": Scenario(
        steps="""
        a = sbatch --nodes=2 | on TERM exit 0; print begins <$SLURM_RESTART_COUNT>; start 0: sleep 280; sleep 1
        wait a says begins
        lose n2
        wait a AGAIN
        rows a
        up n2
        wait a COMPLETED
        rows a
        """,
        nodes=2,
    ),
    "a job of two nodes loses the first": Scenario(
        steps="""
        a = sbatch --nodes=2 | on TERM exit 0; print begins <$SLURM_RESTART_COUNT>; start 0: sleep 280; sleep 1
        wait a says begins
        lose n1
        wait a AGAIN
        rows a
        up n1
        wait a COMPLETED
        rows a
        says a
        """,
        nodes=2,
    ),
    "a job of two nodes loses the second and does not end at SIGTERM": Scenario(
        steps="""
        a = sbatch --nodes=2 srun=--kill-on-bad-exit=1 | ignore TERM; print begins on $SLURM_NODEID; \
start 0: sleep 280; sleep 1
        b = sbatch --nodes=2 --no-requeue | on TERM exit 0; print begins; sleep 280
        wait a says begins on 0
        wait a says begins on 1
        wait b says begins
        lose n2
        rows a
        wait b NODE_FAIL
        rows b
        wait a AGAIN
        up n2
        wait a COMPLETED
        says a
        """,
        nodes=2,
    ),
    "one program of a job of two nodes ends before the other": Scenario(
        steps="""
        a = sbatch --nodes=2 srun=--wait=0 | node 1: exit 0; sleep 6; print late
        b = sbatch --nodes=2 srun=--wait=3 | node 1: exit 0; on TERM exit 0; sleep 14; print late
        c = sbatch --nodes=2 srun=--wait=0 | node 0: exit 0; sleep 6; print late
        d = sbatch --nodes=2 srun=--wait=3 srun=--kill-on-bad-exit=1 | node 0: exit 0; on TERM exit 0; sleep 14; \
print late
        wait a COMPLETED
        says a
        wait b FAILED
        rows b
        says b
        wait c COMPLETED
        says c
        wait d FAILED
        rows d
        says d
        """,
        nodes=2,
    ),
    "one program of a job of two nodes is killed": Scenario(
        steps="""
        a = sbatch --nodes=2 srun=--wait=0 | node 1: raise KILL; on TERM exit 0; sleep 6; print late
        b = sbatch --nodes=2 srun=--wait=0 | node 0: raise KILL; on TERM exit 0; sleep 6; print late
        c = sbatch --nodes=2 srun=--wait=3 | node 1: raise KILL; on TERM exit 0; sleep 14; print late
        d = sbatch --nodes=2 srun=--wait=0 srun=--kill-on-bad-exit=1 | node 1: sleep 2; node 1: raise KILL; \
on TERM exit 0; sleep 9; print late
        e = sbatch --nodes=2 srun=--wait=0 srun=--kill-on-bad-exit=1 | node 0: sleep 2; node 0: raise KILL; sleep 9; \
print late
        f = sbatch --nodes=2 srun=--wait=0 srun=--kill-on-bad-exit=1 | node 0: sleep 2; node 0: raise ABRT; \
ignore TERM; sleep 9; print late
        g = sbatch --nodes=2 srun=--wait=0 srun=--kill-on-bad-exit=1 | node 0: sleep 2; node 0: exit 7; sleep 9; \
print late
        wait a FAILED
        says a
        wait b FAILED
        says b
        wait c FAILED
        says c
        wait d FAILED
        rows d
        says d
        wait e AGAIN
        says e
        wait f FAILED
        says f
        wait g AGAIN
        says g
        run scancel --quiet {e} {g}
        """,
        nodes=2,
    ),
    "the second of two nodes is lost, and nobody has noticed": Scenario(
        steps="""
        a = sbatch --nodes=2 srun=--wait=0 srun=--kill-on-bad-exit=1 | print begins on $SLURM_NODEID; \
start 0: until go; start 0: print goes on; start 0: sleep 280; sleep 1
        b = sbatch --nodes=2 srun=--wait=3 | print begins on $SLURM_NODEID; node 0: until go; node 0: exit 0; sleep 280
        c = sbatch --nodes=2 srun=--wait=3 | print begins on $SLURM_NODEID; node 0: until go; node 0: exit 1; sleep 280
        d = sbatch --nodes=2 srun=--wait=3 | print begins on $SLURM_NODEID; start 0: node 0: until go; \
start 0: node 0: exit 76; start 0: sleep 280; sleep 1
        e = sbatch --nodes=2 | print begins on $SLURM_NODEID; sleep 280
        wait a says begins on 0
        wait a says begins on 1
        wait b says begins on 1
        wait c says begins on 1
        wait d says begins on 1
        wait e says begins on 1
        die n2
        let go
        wait a says goes on
        rows a
        run scancel --quiet {e}
        wait e COMPLETING
        json e_0
        wait b COMPLETING
        json b_0
        says b
        wait c COMPLETING
        json c_0
        says c
        wait d COMPLETING
        json d_0
        says d
        down n2
        wait a AGAIN
        wait b COMPLETED
        wait c FAILED
        wait d AGAIN
        wait e CANCELLED
        up n2
        wait a COMPLETED
        wait d COMPLETED
        """,
        nodes=2,
    ),
    "a job ends whose node nobody reaches": Scenario(
        steps="""
        a = sbatch | print begins; sleep 280
        b = sbatch | print begins; start 0: sleep 280; sleep 1
        c = sbatch --nodes=2 srun=--wait=3 | print begins; node 1: sleep 280; until go; exit 5
        d = sbatch --nodes=2 srun=--wait=0 | print begins; until go; node 1: exit 6
        wait a says begins
        wait b says begins
        wait c says begins
        wait d says begins
        cut n1
        run scancel --quiet {a}
        run scontrol requeue {b_0}
        wait a COMPLETING
        wait b COMPLETING
        json a_0
        json b_0
        join n1
        wait a CANCELLED
        wait b AGAIN
        cut n2
        let go
        wait c COMPLETING
        json c_0
        says c
        wait d COMPLETING
        json d_0
        says d
        join n2
        wait c FAILED
        wait d FAILED
        """,
        nodes=2,
    ),
    "scancel of a job of two nodes": Scenario(
        steps="""
        a = sbatch --nodes=2 | on TERM exit 0; print begins; sleep 280
        wait a says begins
        run scancel --quiet {a}
        wait a CANCELLED
        rows a
        says a
        """,
        nodes=2,
    ),
    "the queue as the product asks for it": Scenario(
        steps="""
        a = sbatch --array=0-3 --cpus-per-task=4 | until go
        b = sbatch | exit 0
        wait a_1 RUNNING
        run squeue -h -a -r -t all -o %i|%T|%r -j {a}
        run squeue -h -r -t PENDING,RUNNING,SUSPENDED -o %i|%T -j {a}
        run squeue -h -a -t PD -o %F -j {a}
        run squeue -h -j 999999 -o %T
        run squeue -h -a -r -t all -o %i|%T -j {a},999999
        run squeue -h -j {#a_0} -o %T
        run scontrol --json show job 999999
        run scancel --quiet {a_3}
        run squeue -h -a -r -t all -o %i|%T|%r -j {a}
        run squeue -h -a -t PD -o %F -j {a}
        let go
        wait a_2 COMPLETED
        wait b COMPLETED
        run squeue -h -j {b} -o %T
        run squeue -h -r -t PENDING,RUNNING,SUSPENDED -o %i|%T -j {a}
        run scontrol show hostnames {n1}
        """,
    ),
    "arrays that are too long": Scenario(
        steps="""
        a = sbatch --array=0-99 --hold | sleep 1
        b = sbatch --array=0-100 --hold | sleep 1
        run scancel --quiet {a}
        """,
    ),
    "no more jobs than the user may submit": Scenario(
        steps="""
        a = sbatch --array=0-3 --hold | sleep 1
        b = sbatch --array=0-3 --hold | sleep 1
        c = sbatch --array=0-1 --hold | sleep 1
        d = sbatch --hold | sleep 1
        run scancel --quiet {c_0}
        e = sbatch --hold | sleep 1
        run scancel --quiet {a} {c} {e}
        f = sbatch --array=0-5 --hold | sleep 1
        run scancel --quiet {f}
        """,
        rules="strict",
        is_first=True,
    ),
    "a dependency that nothing satisfies ends the job": Scenario(
        steps="""
        a = sbatch | sleep 2; exit 1
        b = sbatch --dependency=afterok:{a} | sleep 1
        c = sbatch --dependency=afterok:{b} | sleep 1
        wait b CANCELLED
        rows b
        wait c CANCELLED
        rows c
        """,
        rules="strict",
    ),
    "the controller hangs": Scenario(
        steps="""
        a = sbatch --array=0-1 | sleep 280
        b = sbatch --hold | sleep 1
        c = sbatch | print begins; start 0: sleep 280; sleep 1
        d = sbatch | print begins; sleep 4
        e = sbatch | print begins; start 0: sleep 4; start 0: exit 76; sleep 1
        f = sbatch pause=4 | print begins
        h = sbatch --signal=USR2@1 | ignore USR2; print begins; sleep 280
        wait a RUNNING
        wait c says begins
        wait d says begins
        wait e says begins
        wait h says begins
        wait f RUNNING
        run sinfo -N -h -p main -o %N|%t|%c|%m|%G|%f
        run sinfo -h -a -e -o %P|%l|%D|%c|%m|%G|%s
        run scontrol show config
        run squeue -h -r -a -t PD -S -p,i -o %i|%P|%S|%l
        run scontrol update JobId={h_0} EndTime=now+8
        hang
        all squeue -h -j {a} -o %T | sinfo -h -o %P | scancel --quiet {a_0} | scontrol release {b} \
| scontrol requeue {c_0} | scontrol --json show job {#a_0} | scontrol show config | scontrol show hostnames {n1}
        g = sbatch --array=0-1 | print $SLURM_ARRAY_TASK_ID
        go
        wait b COMPLETED
        wait c COMPLETED
        wait d COMPLETED
        wait e COMPLETED
        wait f COMPLETED
        wait g COMPLETED
        wait h TIMEOUT
        rows a
        rows c
        rows e
        rows f
        says c
        says e
        says f
        says g
        hang 2
        all squeue -h -j {b} -o %T | scontrol update JobId={a_1} TimeLimit=3
        run scancel --quiet {a_1}
        wait a CANCELLED
        """,
        nodes=2,
        rules="hanging",
    ),
    "the controller is gone": Scenario(
        steps="""
        a = sbatch | sleep 280
        b = sbatch | print begins; sleep 2
        c = sbatch | print begins; start 0: sleep 4; start 0: exit 76; sleep 1
        d = sbatch pause=4 | print begins
        wait a RUNNING
        wait b says begins
        wait c says begins
        wait d RUNNING
        kill
        all squeue -h -j {a} -o %T | scancel --quiet {a} | scontrol requeue {a_0} | scontrol --json show job {#a_0}
        e = sbatch | sleep 1
        start
        wait b COMPLETED
        wait c COMPLETED
        wait d COMPLETED
        rows a
        rows c
        rows d
        says c
        says d
        """,
        rules="gone",
    ),
    "a job that the queue forgets": Scenario(
        steps="""
        a = sbatch | print $SLURM_JOB_ID
        wait a COMPLETED
        wait a FORGOTTEN
        run squeue -h -a -r -t all -o %i|%T -j {a}
        run scontrol --json show job {a}
        run scontrol requeue {a_0}
        run scancel --quiet {a}
        b = sbatch --dependency=afterok:{a} | exit 0
        """,
        rules="strict",
    ),
}
