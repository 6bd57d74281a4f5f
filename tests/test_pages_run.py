"""The blocks of the documentation do what the pages say: on this machine, on a real SLURM, on a real Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from slurm.testcluster import ClusterOptions, LoopbackCluster
from tests.analysis.example_study import make_examples
from tests.crawl import light_env
from tests.docs_blocks import ROOT, Session, pages, place_of
from tests.ray_lab import RayLab
from tests.slurm.real import require_slurm

pytestmark = pytest.mark.process

PAGES = {str(page.relative_to(ROOT)): place_of(page) for page in pages()}
EDITS: Mapping[str, Mapping[str, str]] = {}
"""Page -> texts of its blocks that tests replace, to train for less time."""


def pages_on(*places: str) -> list[str]:
    return [page for page, place in PAGES.items() if place in places]


@pytest.mark.parametrize("page", pages_on("local", "study"))
def test_on_this_machine(page: str, tmp_path: Path) -> None:
    if PAGES[page] == "study":
        make_examples(tmp_path / "runs", "first")
    Session(tmp_path, os.environ, edits=EDITS.get(page)).run_page(ROOT / page)


@pytest.mark.parametrize("page", pages_on("slurm"))
def test_on_slurm(page: str, tmp_path: Path) -> None:
    require_slurm()
    with LoopbackCluster(ClusterOptions(nodes=2, gpus=2)) as cluster:
        env = {**cluster.env, "SEQLM_BACKEND": "", "SEQLM_DEVICE": "cpu"}
        Session(tmp_path, env, edits=EDITS.get(page)).run_page(ROOT / page)


@pytest.mark.parametrize("page", pages_on("ray"))
def test_on_ray(page: str, tmp_path: Path, ray_cluster: RayLab) -> None:
    env = {**ray_cluster.env, **light_env()}
    Session(tmp_path, env, enter=ray_cluster.command, edits=EDITS.get(page)).run_page(ROOT / page)
