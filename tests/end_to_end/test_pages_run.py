"""The blocks of the documentation do what the pages say: on this machine, on a real SLURM, on a real Ray."""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from slurm.testcluster import ClusterOptions, LoopbackCluster
from tests.analysis.example_study import make_examples, make_widths
from tests.crawl import Crawl, blank_figures
from tests.docs_blocks import ROOT, Session, command_words, pages, place_of, read_blocks
from tests.ray_lab import RayLab
from tests.seqlm.training.studies import write_text
from tests.slurm.real import require_slurm
from tests.small_study import STUB_LAUNCH

pytestmark = pytest.mark.process


def _table(values: Mapping[str, str]) -> str:
    return "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items()) + " }"


PAGES = {str(page.relative_to(ROOT)): place_of(page) for page in pages()}
RAY_ON_CPUS = f"[backend.ray]\nenv = {_table({'SEQLM_DEVICE': 'cpu'})}\n\n[resources]"
SLURM_ON_CPUS = 'env.SEQLM_DEVICE = "cpu"\nprogress_s = 0.5\ntimeout_min'
SMALL = {
    "model.hidden_size = 256": "model.hidden_size = 16",
    "train.epochs = 10": "train.epochs = 2",
}
TINY_TEXT = {'data.corpus = "pydoc"': 'data.corpus = "files"\ntrain.batch_size = 4\ntrain.seq_len = 10'}
EDITS: Mapping[str, Mapping[str, str]] = {
    "docs/start/first-study.md": {
        'data = { corpus = "pydoc", vocab_size = 1000 }': 'data.corpus = "files"',
        "train.epochs = 4": "train = { epochs = 4, batch_size = 4, seq_len = 10 }",
        "seqlm report first": "seqlm report first --no-behaviour",
    },
    "docs/guides/slurm.md": {**TINY_TEXT, **SMALL, "cpus = 4": "cpus = 1", "timeout_min": SLURM_ON_CPUS},
    "docs/guides/ray.md": {
        **TINY_TEXT,
        **SMALL,
        "model.hidden_size = 512": "model.hidden_size = 24",
        "[resources]": RAY_ON_CPUS,
    },
    "docs/guides/moving.md": TINY_TEXT,
    "docs/guides/cookbook.md": {"cat ~/messages.txt": "cat messages.txt"},
    "docs/guides/own-model.md": {'"pydoc"': '"files"', "train.batch_size = 100": "train.batch_size = 4"},
    "docs/guides/search.md": {
        'data.corpus = "pydoc"': 'data.corpus = "files"\ntrain.seq_len = 10',
        "train.batch_size = 40": "train.batch_size = 4",
        "train.epochs = 6": "train.epochs = 4",
        "count = 12": "count = 4",
        "7 of 12 after epoch 1, 5 of 7 after epoch 3": "4 of 4 after epoch 1, 4 of 4 after epoch 3",
    },
}
"""Page -> texts of its blocks that tests replace, to train for less time and without GPUs."""
AT_HOME = ("docs/guides/cookbook.md",)
"""Pages that are tried with the folder of the test as the home folder."""
TRAINED = ("docs/start/first-study.md",)
"""Pages that use a trained model; on others, the stub trains (:mod:`tests.tools.stub_worker`)."""
DRAWN = ("docs/guides/writing-up.md",)
"""Pages whose reports have figures; on others, the files of figures are blank."""


def pages_on(*places: str) -> list[str]:
    return [page for page, place in PAGES.items() if place in places]


def _require_programs(page: str) -> None:
    """Skip where a program that the page uses is not installed; fail instead with CI=true."""
    commands = [block for block in read_blocks(ROOT / page) if block.kind == "run" and block.language == "bash"]
    used = {words[0] for block in commands for words in command_words(block.text)}
    missing = [program for program in ("pdflatex", "jq") if program in used and shutil.which(program) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"not installed: {missing}")
    elif missing:
        pytest.skip(f"not installed: {missing}")


def _env(page: str, env: Mapping[str, str]) -> dict[str, str]:
    return {**env, **({} if page in DRAWN else blank_figures())}


def _at_home(page: str, folder: Path) -> dict[str, str]:
    return {"HOME": str(folder)} if page in AT_HOME else {}


def _run(page: str, folder: Path, env: Mapping[str, str], enter: Callable[[Sequence[str]], list[str]] = list) -> None:
    edits = EDITS.get(page, {})
    if any('"files"' in new for new in edits.values()):
        env = {**env, "SEQLM_DATA": str(write_text(folder / "text"))}
    env = {**env, **_at_home(page, folder)}
    crawl = Crawl(folder.parent, epochs=0, step_seconds=0.1)
    program = ROOT / "launch.py" if page in TRAINED else STUB_LAUNCH
    Session(folder, env, program=program, enter=enter, edits=edits, crawl=crawl).run_page(ROOT / page)


@pytest.mark.parametrize("page", pages_on("local", "study"))
def test_on_this_machine(page: str, tmp_path: Path) -> None:
    _require_programs(page)
    if PAGES[page] == "study":
        make_examples(tmp_path / "runs", "first")
        make_widths(tmp_path / "runs")
    _run(page, tmp_path, _env(page, os.environ))


@pytest.mark.parametrize("page", pages_on("slurm"))
def test_on_slurm(page: str, tmp_path: Path) -> None:
    require_slurm()
    with LoopbackCluster(ClusterOptions(nodes=2, gpus=2)) as cluster:
        _run(page, tmp_path, {**_env(page, cluster.env), "SEQLM_BACKEND": ""})


@pytest.mark.parametrize("page", pages_on("ray"))
def test_on_ray(page: str, tmp_path: Path, ray_cluster: RayLab) -> None:
    _run(page, tmp_path, _env(page, ray_cluster.env), ray_cluster.command)
