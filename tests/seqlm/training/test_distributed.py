import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from seqlm.config import RunConfig
from seqlm.errors import BackendError, UsageError
from seqlm.files import read_json
from seqlm.rundir import RunDirectory
from seqlm.training.distributed import Rank, process_group, rank_from_environment
from seqlm.training.failure import failure_kind
from seqlm.training.step import micro_batches_from
from tests import commands
from tests.facts import failure_of
from tests.seqlm.training.ranks import steps_file, take_steps
from tests.seqlm.training.studies import make_config, make_run, write_text
from tests.seqlm.training.test_own_models import own_run
from tests.waiting import wait_for

ARCHITECTURES = ("rnn", "gru", "transformer")
PARTS = (1, 2, 3, 4)
FLAT = {"SEQLM_CAPTURE_RANKS": "1"}
each_reduction = pytest.mark.parametrize("how", [{}, FLAT], ids=["buckets", "flat"])


def assert_same(found: dict[str, Any], wanted: dict[str, Any], state: Tensor, rel: float = 1e-10) -> None:
    """Losses, gradients and validation agree to ``rel``; ``state`` is the carried state over all columns."""
    for pair in zip(found["results"], wanted["results"], strict=True):  # loss, gradient norm
        assert pair[0] == pytest.approx(pair[1], rel=rel)
    assert found["valid"] == pytest.approx(wanted["valid"], rel=rel)
    torch.testing.assert_close(found["losses"], wanted["losses"], rtol=rel, atol=1e-9, equal_nan=True)
    assert found["gradients"].keys() == wanted["gradients"].keys()
    for name, gradient in found["gradients"].items():
        torch.testing.assert_close(gradient, wanted["gradients"][name], rtol=rel, atol=rel / 1000)
    assert state.shape == wanted["state"].shape
    torch.testing.assert_close(state, wanted["state"], rtol=rel, atol=rel / 1000)


def dropping(arch: str) -> RunConfig:
    """A run whose masks are shared by all columns of a step, with an optimizer that has a velocity."""
    changes: dict[str, Any] = {"tied": True, "embedding_keep": 0.7}
    if arch != "transformer":
        changes |= {"embedding_size": 16, "weight_keep": 0.6}
    return make_config(arch, optim={"momentum": 0.9, "warmup_steps": 5}, **changes)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parts_of_a_batch_have_the_same_words_and_weights_dropped(tmp_path: Path, arch: str) -> None:
    text = write_text(tmp_path / "text")
    run = make_run(tmp_path / arch, dropping(arch))
    whole = take_steps(run.path, text, Rank())
    found = take_steps(run.path, text, Rank(), 3)
    assert_same(found, whole, found["state"])


@pytest.mark.process
@each_reduction
def test_two_ranks_in_parts_give_what_one_rank_gives_at_once(tmp_path: Path, how: dict[str, str]) -> None:
    text = write_text(tmp_path / "text")
    runs = [make_run(tmp_path / arch, make_config(arch)) for arch in ARCHITECTURES]
    runs += [make_run(tmp_path / f"{arch}-dropping", dropping(arch)) for arch in ARCHITECTURES]
    runs += [own_run(tmp_path / "own", "columns side by side")[0]]
    run_ranks([run.path for run in runs], text, 2, ",".join(map(str, PARTS)), how)
    for run in runs:
        assert_same_on_ranks(run, text, 2, *PARTS)


def assert_same_on_ranks(run: RunDirectory, text: Path, ranks: int, *parts: int, rel: float = 1e-10) -> None:
    """The steps that the ranks have left are those of one rank that takes each batch at once."""
    whole = take_steps(run.path, text, Rank())
    assert whole["gradients"]
    assert all(gradient.abs().sum() > 0 for gradient in whole["gradients"].values())
    for number in parts:
        found = [torch.load(steps_file(run.path, ranks, rank, number), weights_only=True) for rank in range(ranks)]
        state = torch.cat([steps["state"] for steps in found], dim=-2)
        for steps in found:
            assert_same(steps, whole, state, rel)


@pytest.mark.parametrize("text", ["0", "3.5", "-1", "two", "4"])
def test_a_number_of_parts_that_no_rank_can_have_is_told_with_what_is_valid(text: str) -> None:
    with pytest.raises(UsageError, match=f'SEQLM_MICRO_BATCHES: expected a whole number from 1 to 3, .*, got "{text}"'):
        micro_batches_from({"SEQLM_MICRO_BATCHES": text}, 11, 3)  # columns: 4, 4, 3
    assert micro_batches_from({"SEQLM_MICRO_BATCHES": "3"}, 11, 3) == 3
    assert micro_batches_from({}, 11, 3) == 1


ROOT = Path(__file__).parents[3]


def run_ranks(
    runs: list[Path], text: Path, world_size: int, micro_batches: str = "1", how: Mapping[str, str] | None = None
) -> None:
    """Let a gloo group of processes take its steps on each of the runs."""
    meeting = str(text / f"meeting-{world_size}")
    ranks = []
    for rank in range(world_size):
        env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world_size), "SEQLM_RENDEZVOUS": meeting}
        env.update(
            SEQLM_DEVICE="cpu",
            GLOO_SOCKET_IFNAME="lo",
            SEQLM_DATA=str(text),
            MICRO_BATCHES=micro_batches,
            **(how or {}),
        )
        ranks.append(commands.start([sys.executable, "-m", "tests.seqlm.training.ranks", *runs], env=env))
    said = [commands.finish(rank)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world_size, said


def env_of_two(folder: Path, **more: str) -> dict[str, str]:
    """The environment of both ranks of a run, without their numbers."""
    env = {"WORLD_SIZE": "2", "SEQLM_RENDEZVOUS": str(folder / "meeting"), "GLOO_SOCKET_IFNAME": "lo"}
    env |= {"SEQLM_DEVICE": "cpu", "SEQLM_DATA": str(write_text(folder / "text")), "SEQLM_ATTEMPT": "1"}
    return {**os.environ, **env, **more}


@pytest.mark.process
@each_reduction
def test_ranks_with_unlike_numbers_of_columns_give_the_gradients_and_losses_of_one(
    tmp_path: Path, how: dict[str, str]
) -> None:
    text, ranks = write_text(tmp_path / "text"), 3
    runs = [make_run(tmp_path / arch, make_config(arch, batch_size=20)) for arch in ARCHITECTURES]
    run_ranks([run.path for run in runs], text, ranks, how=how)
    for run in runs:
        assert_same_on_ranks(run, text, ranks, 1, rel=1e-6)  # optimizers scale gradients by a float32 number


def test_a_rank_comes_from_the_environment() -> None:
    assert rank_from_environment({"SEQLM_DEVICE": "cpu"}) == Rank(index=0, world_size=1)
    env = {"RANK": "2", "WORLD_SIZE": "4", "SEQLM_DEVICE": "cpu"}
    rank = rank_from_environment(env)
    assert (rank.index, rank.world_size, rank.is_first) == (2, 4, False)


def test_a_device_that_is_not_there_is_an_error_and_no_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="PyTorch sees no CUDA device"):
        rank_from_environment({"SEQLM_DEVICE": "cuda"})


@pytest.mark.process
def test_a_rank_whose_peer_does_not_answer_gives_up_after_the_collective_time_limit(tmp_path: Path) -> None:
    run = make_run(tmp_path / "study" / "run", make_config(epochs=100_000))
    env = env_of_two(tmp_path, SEQLM_COLLECTIVE_MINUTES="0.05", OMP_NUM_THREADS="1")
    # Both have imported torch before either waits for the other.
    program = (
        "import sys; from seqlm.training import worker; print('ready', flush=True); sys.stdin.readline(); "
        "sys.exit(worker.main(sys.argv[1:]))"
    )
    argv = [sys.executable, "-c", program, run.path]
    ranks = [commands.start(argv, env={**env, "RANK": str(rank)}, stdin=subprocess.PIPE) for rank in range(2)]
    try:
        for rank in ranks:
            assert commands.next_line(rank) == "ready\n"
        for rank in ranks:
            assert rank.stdin is not None
            rank.stdin.write("\n")
            rank.stdin.flush()
        wait_for(run.metrics_file.exists, "an epoch of the run")
        assert run.read_metrics()[0][0]["communication_seconds"] > 0
        ranks[1].send_signal(signal.SIGSTOP)
        _, said = commands.finish(ranks[0])
        assert ranks[0].returncode == 1, said
    finally:
        for rank in ranks:
            rank.kill()
            commands.finish(rank)
    failure = failure_of(run)
    assert failure is not None
    assert failure["kind"] == "node", failure
    assert failure["message"].startswith("rank 0 lost another rank of the run")


FAILS = """
import functools, sys
import torch
from seqlm.training import trainer, worker
from seqlm.training.step import TrainingStep

where, take, taken = sys.argv[1], TrainingStep.__call__, []

def fail(*_):
    if len(taken) == 5:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

def step(self, *arguments):
    if not taken and where == "in backward":  # its gradient is the last: others are being reduced by then
        self.model.embedding.weight.register_hook(fail)
    taken.append(None)
    if where == "before a step":
        fail()
    return take(self, *arguments)

if where != "nowhere":
    TrainingStep.__call__ = step
trainer.TrainingStep = functools.partial(TrainingStep, bucket_mb=0.0001)
sys.exit(worker.main([sys.argv[2]]))
"""


@pytest.mark.process
@pytest.mark.parametrize(("where", "failing"), [("before a step", 1), ("in backward", 0)])
def test_a_rank_that_fails_leaves_at_once_and_its_peer_does_not_wait_for_it(
    tmp_path: Path, where: str, failing: int
) -> None:
    run = make_run(tmp_path / "study" / "run", make_config(epochs=100_000))
    env = env_of_two(tmp_path, SEQLM_COLLECTIVE_MINUTES="1000")
    ranks = [
        commands.start(
            [sys.executable, "-c", FAILS, where if rank == failing else "nowhere", run.path],
            cwd=ROOT,
            env={**env, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    said = [commands.finish(rank)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1], said
    assert (read_json(run.end_file(1, failing)) or {})["kind"] == "oom"
    assert run.end(1).kind == "oom", "the peer only lost it"
    assert "Connection closed by peer" in said[1 - failing] or "Connection reset by peer" in said[1 - failing]


def test_a_rank_that_waits_for_its_peers_in_vain_is_not_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer has ended before they met, and no launcher is left that would notice."""
    monkeypatch.setenv("SEQLM_COLLECTIVE_MINUTES", "0.02")
    monkeypatch.setenv("SEQLM_RENDEZVOUS", str(tmp_path / "meeting"))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    # PyTorch counts the groups of a process, this one too, and meets only processes that have counted as many.
    monkeypatch.setattr(dist.distributed_c10d._world, "group_count", dist.distributed_c10d._world.group_count)
    with pytest.raises(RuntimeError) as caught, process_group(Rank(index=0, world_size=2)):
        pass
    assert failure_kind(caught.value, ranks=2) == "node", str(caught.value)


JOINS = """
import sys
import torch
from seqlm.training.distributed import Rank, process_group

rank = Rank(index=int(sys.argv[1]), world_size=2)
with process_group(rank):
    print(rank.sum(torch.ones(3)).tolist())
    print([part.tolist() for part in rank.gather(torch.full((2, 1 + rank.index), -0.5 * rank.index))])
    print(rank.from_rank(0, ["é", {"loss": 0.1}, None] if rank.is_first else "not this"))
"""
JOINED = "[2.0, 2.0, 2.0]\n[[[-0.0], [-0.0]], [[-0.5, -0.5], [-0.5, -0.5]]]\n['é', {'loss': 0.1}, None]\n"
INTRUDES = """
import datetime, sys
import torch.distributed as dist

limit = datetime.timedelta(seconds=3)
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, timeout=limit, wait_for_workers=False)
try:
    dist.init_process_group("gloo", store=store, rank=1, world_size=2, timeout=limit)
    print("joined")
except dist.DistError as error:
    print("kept out")
"""


@pytest.mark.process
def test_ranks_meet_at_a_port_of_the_systems_choice_and_nobody_else_takes_a_place(tmp_path: Path) -> None:
    meeting = tmp_path / "a folder" / "rendezvous"
    meeting.parent.mkdir()
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    env.update(SEQLM_RENDEZVOUS=str(meeting), SEQLM_RENDEZVOUS_HOST="127.0.0.1")

    def start(rank: int) -> subprocess.Popen[str]:
        return commands.start([sys.executable, "-c", JOINS, str(rank)], cwd=ROOT, env=env)

    first = start(0)
    offer = json.loads(wait_for(lambda: meeting.exists() and meeting.read_text(), "the first rank's offer"))
    assert meeting.stat().st_mode & 0o777 == 0o600
    listening = commands.run(["ss", "--listening", "--tcp", "--numeric", "--no-header"]).stdout.splitlines()
    assert [line.split()[3] for line in listening if line.split()[3].endswith(f":{offer['port']}")] == [
        f"127.0.0.1:{offer['port']}"
    ]
    stranger = commands.run([sys.executable, "-c", INTRUDES, str(offer["port"])], cwd=ROOT, env=env)
    assert stranger.stdout == "kept out\n", stranger.stderr
    second = start(1)
    assert [commands.finish(rank)[0] for rank in (first, second)] == [JOINED] * 2
    assert not meeting.exists(), "the secret is needed no more"


@pytest.mark.process
def test_a_rank_that_finds_no_first_one_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQLM_COLLECTIVE_MINUTES", "0.005")
    monkeypatch.setenv("SEQLM_RENDEZVOUS", str(tmp_path / "meeting"))
    monkeypatch.setenv("SEQLM_RENDEZVOUS_HOST", "127.0.0.1")
    with (
        pytest.raises(RuntimeError, match="found no first rank at") as caught,
        process_group(Rank(index=1, world_size=2)),
    ):
        pass
    assert failure_kind(caught.value, ranks=2) == "node"


@pytest.mark.process
def test_an_offer_of_a_first_rank_that_has_ended_is_not_the_last_word(tmp_path: Path) -> None:
    meeting = tmp_path / "rendezvous"
    with socket.create_server(("127.0.0.1", 0)) as gone:
        meeting.write_text(json.dumps({"port": gone.getsockname()[1], "secret": "old"}))
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "SEQLM_RENDEZVOUS": str(meeting)}
    ranks = [commands.start([sys.executable, "-c", JOINS, str(rank)], cwd=ROOT, env=env) for rank in (1, 0)]
    assert [commands.finish(rank)[0] for rank in ranks] == [JOINED] * 2


HOLDS_A_TENSOR_AT_THE_END = """
import os, sys, threading, time
import torch
import torch.distributed as dist

leave, begun, may_end = dist.destroy_process_group, threading.Event(), threading.Lock()
may_end.acquire()

class Held:
    def __del__(self):  # in gloo's thread, which frees the tensor last
        begun.set()
        may_end.acquire()

class Finalization:
    def __del__(self, begun=begun, may_end=may_end, sleep=time.sleep):
        if begun.is_set():
            may_end.release()
            sleep(60)

def hold_and_leave():
    store = dist.distributed_c10d._get_default_store()
    if dist.get_rank() == int(os.environ["HOLDER"]):
        tensor = torch.ones(2)
        tensor.held = Held()
        dist.all_reduce(tensor, async_op=True)
        del tensor
        store.set("held", "1")
        begun.wait()
    else:
        store.wait(["held"])
        dist.all_reduce(torch.ones(2))
    leave()

sys.finalization = Finalization()
dist.destroy_process_group = hold_and_leave
"""


@pytest.mark.slow
@pytest.mark.process
def test_a_rank_ends_well_while_a_thread_of_gloo_holds_a_tensor(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOLDS_A_TENSOR_AT_THE_END)
    run = make_run(tmp_path / "study" / "run", make_config(epochs=1))
    env = env_of_two(tmp_path, PYTHONPATH=os.pathsep.join((str(tmp_path), str(ROOT))), HOLDER="1")
    argv = [sys.executable, "-m", "seqlm.training.worker", run.path]
    ranks = [commands.start(argv, cwd=ROOT, env={**env, "RANK": str(rank)}, cold=True) for rank in range(2)]
    said = [commands.finish(rank)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert run.is_done()
