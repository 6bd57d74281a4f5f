"""Every message of docs/troubleshooting.md is provoked here, so the page shows what seqlm prints.

The messages are read from the page. ``<word>`` in a message stands for any text.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import launch
from analysis.behaviour.step_losses import step_losses
from analysis.report import write_report
from jobs.attempt.supervisor import cause, ended
from jobs.backends import ray_cluster
from jobs.backends.local import LocalBackend
from jobs.backends.ray_executor import RayExecutor
from jobs.backends.ray_groups import RankLocation
from jobs.cli.view import RunView, StudyView
from jobs.launch.prepare import resolve_specs
from jobs.manifests import secrets
from jobs.manifests.load import load_manifest
from jobs.manifests.policy import Policy
from jobs.plan.capacity import Allocation
from jobs.spec import Resources, RunSpec
from jobs.study import squeue
from jobs.study.folder import launching
from jobs.study.kept_code import Code
from seqlm import files, machine
from seqlm.data import pydoc_corpus
from seqlm.data.corpus import resolve_data
from seqlm.data.source import read_texts
from seqlm.ends import End, verdict
from seqlm.errors import BackendError, SeqlmError
from seqlm.files import write_json
from seqlm.locks import exclusive_lock, open_lock
from seqlm.models import recurrent
from seqlm.rundir import RunDirectory
from seqlm.training.checkpoint import load_checkpoint, require_text
from seqlm.training.distributed import Rank, gpu_share, rank_from_environment
from seqlm.training.failure import describe_failure
from seqlm.training.perplexity import require_finite
from seqlm.training.self_check import cases, check_case
from slurm import site
from slurm.allocation import JobBackend, SlurmContext
from slurm.settings import SlurmSettings
from slurm.submission import submit
from tests.analysis.behaviour.literal import make_model
from tests.docs_blocks import ROOT
from tests.facts import fail
from tests.fakes import FakeBackend
from tests.jobs.launch.test_canary import check, diverges, trial
from tests.slurm.test_site import SINFO
from tests.slurm.test_submission import jobs, planned, request
from tests.training.studies import make_config, make_run, write_text
from tests.training.test_self_check import model_config, plant, too_small

PAGE = ROOT / "docs" / "troubleshooting.md"
ENTRY = re.compile(
    r"^### ([^\n]+)\n.*?^```text\n(.*?)^```\n\n\*\*Cause\.\*\* .*?\*\*Fix\.\*\* ", re.MULTILINE | re.DOTALL
)
MESSAGES = dict(ENTRY.findall(PAGE.read_text("utf-8")))
"""Heading -> message."""

MANIFEST = """
[study]
name = "first"

[defaults]
data.corpus = "files"
model.hidden_size = 16
train = { epochs = 1, batch_size = 8, seq_len = 5 }

[[run]]
name = "rnn"
model.arch = "rnn"
optim.optimizer = "adam"
optim.lr = 0.01
"""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a message is provoked with."""

    folder: Path
    """The working folder, with the manifest ``first.toml`` and a text."""
    patch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def command(self, *words: str) -> str:
        """Return what a command prints to stderr."""
        assert launch.main(list(words)) != 0
        return self.capsys.readouterr().err

    def manifest(self, old: str, new: str) -> None:
        """Write a manifest with a change."""
        assert old in MANIFEST
        (self.folder / "first.toml").write_text(MANIFEST.replace(old, new))

    def program(self, name: str, script: str) -> None:
        """Put a program in front of PATH."""
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        self.patch.setenv("PATH", f"{folder}{os.pathsep}/bin{os.pathsep}/usr/bin")


Provoke = Callable[[Scene], str]
PROVOKED: dict[str, Provoke] = {}
WITH_PROCESSES: set[str] = set()


def provokes(heading: str, *, processes: bool = False) -> Callable[[Provoke], Provoke]:
    """Register a function that returns the message below a heading, or raises it."""

    def register(provoke: Provoke) -> Provoke:
        PROVOKED[heading] = provoke
        if processes:
            WITH_PROCESSES.add(heading)
        return provoke

    return register


def cases_of_the_page() -> list[Any]:
    """Return a parameter of the test for each heading; those that start programs are marked."""
    return [
        pytest.param(heading, marks=pytest.mark.process if heading in WITH_PROCESSES else (), id=heading)
        for heading in MESSAGES
    ]


# -- command line and manifest -------------------------------------------------------------------------------------


@provokes("A key is unknown")
def _(scene: Scene) -> str:
    scene.manifest("optim.lr ", "optim.lrate ")
    return scene.command("plan", "first.toml")


@provokes("A value is wrong")
def _(scene: Scene) -> str:
    scene.manifest("0.01", '"fast"')
    return scene.command("plan", "first.toml")


@provokes("The manifest is not found")
def _(scene: Scene) -> str:
    return scene.command("plan", "frist.toml")


@provokes("The manifest cannot be read")
def _(scene: Scene) -> str:
    scene.manifest("[[run]]", "[[run]")
    return scene.command("plan", "first.toml")


@provokes("The study is not found")
def _(scene: Scene) -> str:
    return scene.command("status", "second")


@provokes("The study has not been launched")
def _(scene: Scene) -> str:
    return scene.command("status", "first.toml")


@provokes("Two entries differ in epochs alone")
def _(scene: Scene) -> str:
    scene.manifest("[[run]]", "[[grid]]\ntrain.epochs = [10, 20]")
    return scene.command("plan", "first.toml")


@provokes("A filter finds no run")
def _(scene: Scene) -> str:
    return scene.command("plan", "first.toml", "--only", "lr>0.1")


# -- launching -----------------------------------------------------------------------------------------------------


@provokes("The study is already being launched")
def _(scene: Scene) -> str:
    with launching(Path("runs/first")):
        return scene.command("run", "first.toml", "--data", "text")


@provokes("The study is of an earlier version")
def _(scene: Scene) -> str:
    study_dir = scene.folder / "runs" / "first"
    study_dir.mkdir(parents=True)
    write_json(study_dir / "study.json", {"version": 1})
    return scene.command("plan", "first.toml", "--data", "text")


@provokes("More epochs are requested, and the checkpoint is gone")
def _(scene: Scene) -> str:
    (spec,) = resolve_specs(load_manifest(Path("first.toml")).runs, Path("text"))
    run = RunDirectory.locate(Path("runs/first"), spec.name, spec.fingerprint)
    run.create(spec.config, {"name": spec.name})
    write_json(run.result_file, {"epochs": 1, "best_val_ppl": 9.0})
    assert launch.main(["run", "first.toml", "--data", "text", "--set", "train.epochs=2"]) == 0
    return scene.capsys.readouterr().err


@provokes("A lock has no live holder")
def _(scene: Scene) -> str:
    fcntl.flock(open_lock(scene.folder / "launch.lock"), fcntl.LOCK_EX)
    with exclusive_lock(scene.folder / "launch.lock", "busy"):
        return "taken"


@provokes("A run never fits")
def _(scene: Scene) -> str:
    scene.manifest("optim.lr = 0.01", "optim.lr = 0.01\nresources.cpus = 2000")
    return scene.command("plan", "first.toml", "--data", "text")


@provokes("The canaries failed")
def _(scene: Scene) -> str:
    check([trial(scene.folder, make_config("rnn"), name="rnn")], scene.folder, FakeBackend(diverges))
    return "started"


@provokes("The processor lacks a precision")
def _(scene: Scene) -> str:
    scene.patch.setattr(machine, "has_bf16", lambda: False)
    LocalBackend().resolve(RunSpec(name="rnn", config=make_config(precision="bf16")), 1)
    return "resolved"


# -- runs that wait or have failed -----------------------------------------------------------------------------------


def reason(scene: Scene, error: BaseException) -> str:
    """Return the reason of a run whose worker ended with an error."""
    run = make_run(scene.folder / "run", make_config())
    fail(run, describe_failure(error, rank=0))
    return str(run.observe().reason)


@provokes("A run was interrupted")
def _(scene: Scene) -> str:
    run = make_run(scene.folder / "run", make_config())
    run.attempt_dir(1).mkdir(parents=True)
    files.write_json_lines(run.metrics_file, [{"epoch": 0, "val_ppl": 100.0}])
    return str(run.observe().reason)


@provokes("A run is slow")
def _(scene: Scene) -> str:
    run = RunView(name="gru-adam", id="", state="running", arch="gru", epochs=1)
    slow = replace(run, tokens_per_second=600.0, expected_tokens_per_second=40_000.0)
    return str(StudyView(name="first", runs=(slow,)).slow_line)


@provokes("A run diverged")
def _(scene: Scene) -> str:
    with pytest.raises(SeqlmError) as caught:
        require_finite([(float("nan"), float("nan"))], 1)
    return reason(scene, caught.value)


@provokes("A worker was killed")
def _(scene: Scene) -> str:
    return ": ".join(cause(ended({0: -9}, 1), scene.folder / "stderr.log"))


@provokes("The system was out of memory")
def _(scene: Scene) -> str:
    return ": ".join(cause(ended({0: -9}, 1, out_of_memory=[0]), scene.folder / "stderr.log"))


@provokes("A run is out of memory to the end")
def _(scene: Scene) -> str:
    ends = [End(attempt=1, kind="oom", micro_batches=parts) for parts in (1, 2, 4, 8)]
    why = verdict(Policy().limits, ends, most_micro_batches=20).why
    return f"{reason(scene, MemoryError())}{why}"


@provokes("Another process stopped the run")
def _(scene: Scene) -> str:
    return ": ".join(cause(ended({0: -15}, 1), scene.folder / "stderr.log"))


@provokes("A rank lost another rank")
def _(scene: Scene) -> str:
    return reason(scene, torch.distributed.DistNetworkError("Connection closed by peer"))


@provokes("The run has another text")
def _(scene: Scene) -> str:
    require_text(scene.folder / "last.pt", SimpleNamespace(corpus_sha256="a" * 64), "b" * 64)  # type: ignore[arg-type]
    return "accepted"


# -- data ----------------------------------------------------------------------------------------------------------


@provokes("The Penn Treebank is missing")
def _(scene: Scene) -> str:
    scene.patch.setenv("SEQLM_CACHE", str(scene.folder / "cache"))
    scene.manifest('"files"', '"ptb"')
    return scene.command("run", "first.toml")


@provokes("A file of the corpus is missing")
def _(scene: Scene) -> str:
    for name in ("valid.txt", "test.txt"):
        (scene.folder / "text" / name).unlink()
    return scene.command("run", "first.toml", "--data", "text")


@provokes("The text is not UTF-8")
def _(scene: Scene) -> str:
    (scene.folder / "text" / "train.txt").write_bytes("the house\na caf\u00e9\n".encode("latin-1"))
    return scene.command("run", "first.toml", "--data", "text")


@provokes("The text is too small")
def _(scene: Scene) -> str:
    scene.manifest("batch_size = 8, seq_len = 5", "batch_size = 20, seq_len = 35")
    return scene.command("run", "first.toml", "--data", "text")


@provokes("The text is too short for the behaviour")
def _(scene: Scene) -> str:
    with pytest.raises(SeqlmError) as caught:
        step_losses(make_model("rnn"), torch.zeros(67, 10, dtype=torch.int64), 70)
    return reason(scene, caught.value)


@provokes("Python makes another pydoc text")
def _(scene: Scene) -> str:
    scene.patch.setattr(pydoc_corpus, "pydoc_texts", lambda: read_texts(scene.folder / "text"))
    config = replace(make_config().data, corpus="pydoc", sha256="0" * 64)
    resolve_data(config, None)
    return "accepted"


# -- files and disk ------------------------------------------------------------------------------------------------


@provokes("The disk is full")
def _(scene: Scene) -> str:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    scene.patch.setattr(files, "flush", full)
    files.write_json(scene.folder / "result.json", {})
    return "written"


@provokes("A file is damaged")
def _(scene: Scene) -> str:
    run = make_run(scene.folder / "runs" / "first" / "run", make_config())
    run.provenance_file.write_text("{")
    run.read_provenance()
    return "read"


@provokes("A checkpoint is damaged")
def _(scene: Scene) -> str:
    (scene.folder / "last.pt").write_bytes(b"PK\3\4")
    load_checkpoint(scene.folder / "last.pt", "0" * 64)
    return "loaded"


@provokes("The study is of another version")
def _(scene: Scene) -> str:
    run = make_run(scene.folder / "run", make_config())
    files.write_json(run.config_file, {**make_config().to_dict(), "schedule": "cosine"})
    run.read_config()
    return "read"


@provokes("A folder is not replaced by a report")
def _(scene: Scene) -> str:
    make_run(scene.folder / "runs" / "first" / "run", make_config())
    write_report(scene.folder / "runs" / "first", output=scene.folder / "text")
    return "replaced"


# -- GPUs ----------------------------------------------------------------------------------------------------------


@provokes("CUDA_VISIBLE_DEVICES names no GPU")
def _(scene: Scene) -> str:
    card = machine.Card(index=0, whole=machine.Gpu("GPU-aa", "NVIDIA H100"))
    scene.patch.setattr(machine, "cards", lambda: [card])
    scene.patch.setenv("CUDA_VISIBLE_DEVICES", "7")
    return scene.command("plan", "first.toml", "--data", "text")


@provokes("PyTorch sees no GPU")
def _(scene: Scene) -> str:
    rank_from_environment({"SEQLM_DEVICE": "cuda"})
    return "found"


@provokes("PyTorch has no code for the GPU")
def _(scene: Scene) -> str:
    return reason(scene, RuntimeError("CUDA error: no kernel image is available for execution on the device"))


@provokes("A share of a GPU is too small")
def _(scene: Scene) -> str:
    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30)
    scene.patch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    scene.patch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *words: None)
    rank = Rank(device=torch.device("cuda", 0))
    with pytest.raises(torch.OutOfMemoryError) as caught, gpu_share(rank, {"SEQLM_GPU_SHARE": "0.25"}):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
    return reason(scene, caught.value)


@provokes("The self-check failed")
def _(scene: Scene) -> str:
    scene.patch.setenv("SEQLM_CACHE", str(scene.folder / "cache"))
    plant(scene.patch, recurrent.FusedGRU, 5, too_small)
    check_case(cases(model_config("gru", num_layers=1))[0], "fp32", Rank())
    return "passed"


# -- Ray -----------------------------------------------------------------------------------------------------------


@provokes("There is no Ray cluster at the address")
def _(scene: Scene) -> str:
    return scene.command("run", "first.toml", "--backend", "ray", "--ray-address", "127.0.0.1:9", "--data", "text")


@provokes("Ray cannot be started")
def _(scene: Scene) -> str:
    def refuse(options: dict[str, Any]) -> None:
        raise RuntimeError("Failed to start GCS")

    scene.patch.setattr(ray_cluster, "_init", refuse)
    ray_cluster.RayCluster(None).open(Code(path=scene.folder, commit=None, dirty=False, live=False))
    return "started"


@provokes("A node does not see the run's folder")
def _(scene: Scene) -> str:
    backend = RayExecutor()
    scene.patch.setattr(backend, "_abandon", lambda *words: None)
    (node,) = backend.capacity().nodes
    group = SimpleNamespace(hosts=["a"], allocations=[Allocation(node=node, cpus=1, device=None, gpus=0)])
    submission = SimpleNamespace(run_dir=scene.folder / "run", resources=Resources(cpus=1, gpus=0))
    job = SimpleNamespace(
        locations={}, pending={}, codes={}, submission=submission, group=group, allocations=group.allocations
    )
    blind = RankLocation(node=node, address="10.0.0.2", interface=None, device=None, sees_run=False)
    backend._arrived(job, 0, blind)  # type: ignore[arg-type]
    return "started"


@provokes("The code is too large for Ray")
def _(scene: Scene) -> str:
    scene.patch.setattr(ray_cluster, "MAX_CODE_BYTES", 100)
    ray_cluster._runtime_env(Code(path=scene.folder, commit=None, dirty=False, live=False))
    return "sent"


# -- SLURM ---------------------------------------------------------------------------------------------------------


@provokes("SLURM's programs are missing", processes=True)
def _(scene: Scene) -> str:
    scene.patch.setenv("PATH", str(scene.folder))
    return scene.command("run", "first.toml", "--backend", "slurm", "--data", "text")


@provokes("There is no such partition")
def _(scene: Scene) -> str:
    scene.patch.setattr(site, "ask", lambda *command: SINFO)
    site.partition_facts("gpus")
    return "found"


@provokes("The time limit is too long")
def _(scene: Scene) -> str:
    partitions, _ = site.read_partitions(SINFO)
    partitions["cpu"].resolve(Resources(), SlurmSettings(timeout_min=120))
    return "resolved"


@provokes("sbatch rejected the job", processes=True)
def _(scene: Scene) -> str:
    scene.program("srun", "")
    scene.program("sbatch", 'echo "sbatch: error: Invalid account" >&2; exit 1')
    items = planned(scene.folder, 1)
    submit(jobs(items, SlurmSettings()), SlurmSettings(), request(items))
    return "submitted"


@provokes("The job got no GPU")
def _(scene: Scene) -> str:
    variables = {"SLURM_JOB_ID": "1", "SLURM_JOB_PARTITION": "gpu", "SLURMD_NODENAME": "n1"}
    JobBackend(SlurmContext.from_environment(variables), Resources(cpus=1, gpus=1), 1)
    return "found"


@provokes("A variable is not set")
def _(scene: Scene) -> str:
    secrets.passed(["HF_TOKEN"], {}, "backend.slurm")
    return "passed"


@provokes("A job is gone")
def _(scene: Scene) -> str:
    scene.patch.setattr(squeue, "ask", lambda *command, **options: "")
    return squeue.Scheduler().states(["12"])["12"].reason


@provokes("slurmctld does not answer")
def _(scene: Scene) -> str:
    def silent(*command: str, **options: Any) -> str:
        raise BackendError("squeue: Unable to contact slurm controller")

    scene.patch.setattr(squeue, "ask", silent)
    return squeue.Scheduler().states(["12"])["12"].reason


# -- the page ------------------------------------------------------------------------------------------------------


def test_each_entry_has_a_message_a_cause_and_a_fix_and_is_provoked() -> None:
    headings = re.findall(r"^### (.+)$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    assert headings == list(MESSAGES)
    assert MESSAGES.keys() == PROVOKED.keys()
    assert len(set(MESSAGES.values())) == len(MESSAGES)


@pytest.mark.parametrize("heading", cases_of_the_page())
def test_the_message_is_the_one_on_the_page(
    heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text")
    (tmp_path / "first.toml").write_text(MANIFEST)
    try:
        printed = PROVOKED[heading](Scene(folder=tmp_path, patch=monkeypatch, capsys=capsys))
    except SeqlmError as error:
        printed = str(error)
    lines = printed.splitlines()
    for message in MESSAGES[heading].splitlines():
        pattern = re.sub(r"<\w+>", ".+", re.escape(message))
        assert any(re.fullmatch(f"(error: )?{pattern}", line) for line in lines), f"{message}\n\nprinted:\n{printed}"
