"""What an audit finds in a run that was trained here, and in one that somebody has changed since."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seqlm.audit import Stretch, records_finding, stretches_of
from seqlm.data.corpus import Corpus, load_corpus
from seqlm.records.runs import Finding
from seqlm.rundir import RunDirectory
from seqlm.trace import ROW_BYTES, read_trace
from seqlm.training import attempt as attempts
from seqlm.training.auditor import Auditor
from seqlm.training.distributed import Rank
from tests.seqlm.training.studies import Attempt, make_config, make_run, write_text

CONFIG = make_config("gru", epochs=3, keep=0.8)
FIRST, THIRD = Stretch(0, 1), Stretch(2, 3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(CONFIG.data, write_text(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> RunDirectory:
    """A run that has kept the checkpoint after its second epoch."""
    name = f"gru-{CONFIG.fingerprint()[:8]}"
    run = make_run(tmp_path_factory.mktemp("study") / name, CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQLM_KEEP_EPOCHS", "2")
        attempt = Attempt(run, corpus, attempt=1)
        attempt.made.record_start()
        attempt.train()
    return run


@pytest.fixture
def run(trained: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of it, to be changed."""
    shutil.copytree(trained.path, tmp_path / "study" / trained.id)
    return RunDirectory(tmp_path / "study" / trained.id)


def audited(run: RunDirectory, corpus: Corpus, *stretches: Stretch) -> list[Finding]:
    """The findings about records, scores and stretches."""
    job = RunDirectory(run.path.parent / "audits" / "000001" / run.id)
    attempt = attempts.Attempt(run=job, rank=Rank(), number=1)
    attempt.record_start()
    auditor = Auditor(run, attempt, corpus)
    return [records_finding(run, CONFIG), auditor.scores(), *map(auditor.stretch, stretches)]


def verdicts(run: RunDirectory, corpus: Corpus, *stretches: Stretch) -> dict[str, str]:
    return {found.part: found.verdict for found in audited(run, corpus, *stretches)}


def change_epoch(run: RunDirectory, epoch: int, change: Callable[[dict[str, Any]], Any]) -> None:
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    change(lines[epoch - 1])
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_result(run: RunDirectory, **fields: Any) -> None:
    run.result_file.write_text(json.dumps({**json.loads(run.result_file.read_text()), **fields}))


def change_row(run: RunDirectory, step: int, column: int, change: Callable[[float], float]) -> None:
    content = bytearray(run.trace_file.read_bytes())
    place = step * ROW_BYTES + 4 * column
    struct.pack_into("<f", content, place, change(*struct.unpack_from("<f", content, place)))
    run.trace_file.write_bytes(content)


def next_float(value: float) -> float:
    """The float32 after it: one bit."""
    return float(torch.nextafter(torch.tensor(value), torch.tensor(torch.inf)))


def flip_bit(path: Path) -> None:
    """Flip the last bit of one weight, and of its checkpoint write all else as it is."""
    content = torch.load(path, weights_only=True)
    weight = content["model"][max(content["model"])].view(-1)
    weight.view(torch.int32)[0] ^= 1
    torch.save(content, path)


def test_what_was_trained_here_is_equal_bit_for_bit(run: RunDirectory, corpus: Corpus) -> None:
    trace = read_trace(run)
    assert trace is not None
    assert stretches_of(run, 3) == [FIRST, THIRD]
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    found = audited(run, corpus, FIRST, THIRD, Stretch(0, 3))
    assert [one.verdict for one in found] == ["equal"] * 5, found
    assert [one.part for one in found] == ["records", "scores", "epoch 1", "epoch 3", "epochs 1-3"]
    assert f"{trace.steps} losses and norms and the weights" in found[2].text
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


EDITS: dict[str, tuple[Callable[[RunDirectory], Any], set[str]]] = {
    "a loss of a step": (lambda run: change_row(run, 3, 0, next_float), {"epoch 1"}),
    "a norm of a step": (lambda run: change_row(run, -2, 1, next_float), {"epoch 3"}),
    "a loss that moves the mean": (lambda run: change_row(run, 3, 0, lambda loss: loss - 0.01), {"records", "epoch 1"}),
    "a training loss": (
        lambda run: change_epoch(run, 1, lambda one: one.update(train_loss=1.0)),
        {"records", "epoch 1"},
    ),
    "a validation loss with its perplexity": (
        lambda run: change_epoch(run, 3, lambda one: one.update(val_loss=9.0, val_ppl=8103.083927575384)),
        {"epoch 3"},
    ),
    "the weights of an epoch": (
        lambda run: change_epoch(run, 3, lambda one: one.update(weights="0" * 64)),
        {"epoch 3"},
    ),
    "a perplexity of the result": (lambda run: change_result(run, best_val_ppl=2.0), {"records"}),
    "a test loss with its perplexity": (
        lambda run: change_result(run, test_loss=1.0, test_ppl=2.718281828459045),
        {"scores"},
    ),
    "a bit of the best model": (lambda run: flip_bit(run.best_checkpoint), {"scores"}),
    "a bit of a kept checkpoint": (lambda run: flip_bit(run.epoch_checkpoint(2)), {"epoch 3"}),
    "a checkpoint that is damaged": (lambda run: run.best_checkpoint.write_bytes(b"damaged"), {"scores"}),
    "the rows of an epoch": (
        lambda run: run.trace_file.write_bytes(run.trace_file.read_bytes()[: -10 * ROW_BYTES]),
        {"records"},
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_each_falsification_is_found_by_the_part_that_covers_it(run: RunDirectory, corpus: Corpus, edit: str) -> None:
    change, parts = EDITS[edit]
    change(run)
    found = verdicts(run, corpus, FIRST, THIRD)
    differ = {part for part, verdict in found.items() if verdict == "differs"}
    assert parts <= differ, found
    assert differ - parts <= {"records", "scores"}, "best.pt has the history of its epochs too"


def test_a_node_that_computed_one_step_wrong_is_named_by_that_step(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "study" / f"gru-{CONFIG.fingerprint()[:8]}", CONFIG)
    attempt = Attempt(run, corpus, attempt=1)
    attempt.made.record_start()
    parameter = next(attempt.trainer.model.parameters())

    def disturb(number: int) -> None:
        if number == 8:
            with torch.no_grad():
                parameter.mul_(1 + 1e-5)

    attempt.before_each_step(disturb)
    attempt.train()
    (found,) = [one for one in audited(run, corpus, FIRST) if one.part == "epoch 1"]
    assert found.verdict == "differs"
    assert re.search(r"from step (8|9) of epoch 1: (loss|norm) [0-9.]+ here, [0-9.]+ recorded", found.text), found.text


# -- other hardware ----------------------------------------------------------------------------------------------------


def change_worker(run: RunDirectory, **fields: Any) -> None:
    path = run.worker_file(1)
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_on_another_library_losses_are_equal_up_to_a_band_and_a_changed_loss_is_outside(
    run: RunDirectory, corpus: Corpus
) -> None:
    other = {"onednn": "blas", "blas": "onednn"}[run.read_worker(1).matmul or ""]
    change_worker(run, matmul=other)
    for step in range(0, 5):
        change_row(run, step, 0, next_float)
    assert verdicts(run, corpus, FIRST) == {"records": "equal", "scores": "equal", "epoch 1": "rounding"}
    change_row(run, 4, 0, lambda loss: loss + 0.001)
    (found,) = [one for one in audited(run, corpus, FIRST) if one.part == "epoch 1"]
    assert found.verdict == "differs"
    assert "step 5 of epoch 1" in found.text
    assert "rounding does not explain" in found.text


def test_where_dropout_masks_would_be_others_nothing_is_accused(run: RunDirectory, corpus: Corpus) -> None:
    change_worker(run, ranks=2)
    found = verdicts(run, corpus, FIRST)
    assert found == {"records": "equal", "scores": "equal", "epoch 1": "unknown"}


def test_another_version_of_pytorch_is_compared_and_accuses_nobody(run: RunDirectory, corpus: Corpus) -> None:
    change_worker(run, torch="1.0")
    change_row(run, 3, 0, next_float)
    assert verdicts(run, corpus, FIRST)["epoch 1"] == "rounding"
    change_row(run, 4, 0, lambda loss: loss + 0.01)
    (found,) = [one for one in audited(run, corpus, FIRST) if one.part == "epoch 1"]
    assert found.verdict == "unknown"
    assert "step 5 of epoch 1" in found.text
    assert found.digest is None, "it does not count as checked"


def test_a_field_that_an_earlier_version_did_not_record_may_differ(run: RunDirectory, corpus: Corpus) -> None:
    change_worker(run, instructions=None)
    change_row(run, 3, 0, next_float)
    assert verdicts(run, corpus, FIRST)["epoch 1"] == "rounding"


def test_without_records_of_the_hardware_the_band_decides(run: RunDirectory, corpus: Corpus) -> None:
    shutil.rmtree(run.path / "attempts")
    change_row(run, 3, 0, next_float)
    assert verdicts(run, corpus, FIRST)["epoch 1"] == "rounding"
