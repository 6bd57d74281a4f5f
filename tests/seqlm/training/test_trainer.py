import contextlib
import math
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from seqlm.config import RunConfig
from seqlm.data.corpus import Corpus, load_corpus
from seqlm.errors import DataError, DivergedError
from seqlm.models import build_model
from seqlm.token_losses import read_token_losses
from seqlm.training.attempt import StopRequested
from seqlm.training.checkpoint import load_checkpoint
from seqlm.training.records import TokenLoss, best_epoch, perplexity
from seqlm.training.scores import frequency_classes
from seqlm.training.step import StepResults
from tests.outcome import outcome
from tests.seqlm.training.studies import Attempt, make_config, make_run, write_text

ARCHITECTURES = ("rnn", "gru", "transformer")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(make_config().data, write_text(tmp_path_factory.mktemp("text"), train_lines=110))


def attempt_at(run_folder: Path, config: RunConfig, corpus: Corpus) -> Attempt:
    return Attempt(make_run(run_folder, config), corpus)


def split_columns(corpus: Corpus, split: str, batch_size: int) -> torch.Tensor:
    """Columns cut literally: column j holds ids j*n .. (j+1)*n - 1."""
    ids = list(corpus.splits[split])
    n = len(ids) // batch_size
    return torch.tensor([[ids[j * n + i] for j in range(batch_size)] for i in range(n)])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_epoch_is_the_protocol_written_out(tmp_path: Path, corpus: Corpus, arch: str) -> None:
    """Columns, carried state, mean loss, clipping and the update, against a plain loop with its own SGD."""
    config = make_config(arch, lr=0.7, epochs=1)
    attempt = attempt_at(tmp_path / "run", config, corpus)
    trainer = attempt.trainer
    torch.manual_seed(config.seed)
    model = build_model(config.model, len(corpus.vocabulary), config.train.seq_len)
    for ours, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), "the seed decides the initial values"

    columns = split_columns(corpus, "train", 8)
    windows = (len(columns) - 1) // 5
    state, total = model.initial_state(8), 0.0
    for w in range(windows):
        logits, state = model(columns[5 * w : 5 * w + 5], state.detach())
        targets = columns[5 * w + 1 : 5 * w + 6]
        loss = -logits.log_softmax(-1).gather(-1, targets[..., None]).mean()
        model.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters() if p.grad is not None))
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is not None
                p -= 0.7 * p.grad * min(1.0, 0.25 / (norm + 1e-6))
        total += loss.item()
    attempt.train()
    record = trainer.history[0]
    assert record["train_loss"] == pytest.approx(total / windows, rel=1e-5)
    assert record["train_ppl"] == pytest.approx(math.exp(total / windows), rel=1e-5)
    for (name, ours), theirs in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")

    valid = split_columns(corpus, "valid", 8)
    model.eval()
    state, losses = model.initial_state(8), []
    for w in range((len(valid) - 1) // 5):
        logits, state = model(valid[5 * w : 5 * w + 5], state)
        losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), valid[5 * w + 1 : 5 * w + 6].flatten()).item())
    assert record["val_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_with_eval_the_score_is_of_every_token_whatever_the_batch_of_training(
    tmp_path: Path, corpus: Corpus, arch: str
) -> None:
    """Against the text read as the documentation says: seven columns, and one of what is left, in windows of six."""
    config = make_config(arch, epochs=1, eval={"batch_size": 7, "seq_len": 6})
    attempt = attempt_at(tmp_path / "run", config, corpus)
    attempt.train()
    trainer = attempt.trainer
    ids = list(corpus.splits["valid"])
    length = (len(ids) - 1) // 7
    stretches = [ids[j * length : (j + 1) * length + 1] for j in range(7)] + [ids[7 * length :]]
    assert len(stretches[7]) > 1, "the text must leave a rest"
    model, total, each = trainer.model.eval(), 0.0, [math.nan]
    for stretch in stretches:
        state = model.initial_state(1)
        for start in range(0, len(stretch) - 1, 6):
            inputs = torch.tensor(stretch[start:-1][:6]).unsqueeze(1)
            targets = torch.tensor(stretch[start + 1 :][:6]).unsqueeze(1)
            losses, state = model.token_losses(inputs, targets, state)
            total += losses.sum().item()
            each += losses.flatten().tolist()
    (record,), result = trainer.history, attempt.run.read_result()
    assert record["val_loss"] == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    assert record["val_tokens"] == result.val_tokens == len(ids) - 1
    assert result.test_tokens == corpus.tokens["test"] - 1
    recorded = read_token_losses(attempt.run)
    assert recorded is not None
    assert recorded.tolist() == pytest.approx(each, rel=1e-5, nan_ok=True), "in the order of the text"
    assert sum(result.frequency_tokens) == len(ids) - 1
    losses_of_classes = [loss or 0.0 for loss in result.frequency_losses]
    by_class = sum(loss * count for loss, count in zip(losses_of_classes, result.frequency_tokens, strict=True))
    assert by_class == pytest.approx(total, rel=1e-5)


def test_without_eval_the_recorded_losses_are_those_of_the_best_epoch(tmp_path: Path, corpus: Corpus) -> None:
    attempt = attempt_at(tmp_path / "run", make_config("gru", optimizer="adam", lr=0.2, epochs=4), corpus)
    result = attempt.train()
    recorded = read_token_losses(attempt.run)
    assert recorded is not None
    assert len(recorded) == corpus.tokens["valid"]
    known = [loss for loss in recorded if not math.isnan(loss)]
    assert len(known) == result.val_tokens
    assert sum(known) / len(known) == pytest.approx(result.best_val_loss, rel=1e-5)
    assert result.train_slice_tokens == result.val_tokens
    assert result.train_slice_loss == pytest.approx(
        float(attempt.trainer.token_losses(corpus.splits["train"][: len(recorded)]).nanmean()), rel=1e-9
    )


def test_tokens_are_classed_by_their_frequency_in_the_training_text() -> None:
    frequent, middle, rare = list(range(10)), list(range(10, 100)), list(range(100, 120))
    train = array("i", [*frequent * 9, *middle * 5, *rare])
    text = array("i", [119, 3, 50, 100, 9, 10, 99])
    classes = frequency_classes(memoryview(train), memoryview(text), 130)
    assert classes.tolist() == [2, 0, 1, 2, 0, 1, 1]


def test_without_eval_only_the_windows_of_training_are_scored(tmp_path: Path, corpus: Corpus) -> None:
    trainer = attempt_at(tmp_path / "run", make_config(), corpus).trainer
    assert trainer.evaluate("valid").tokens == 8 * 5 * ((corpus.tokens["valid"] // 8 - 1) // 5)


@pytest.mark.slow
def test_metrics_result_and_checkpoints_follow_the_contract(tmp_path: Path, corpus: Corpus) -> None:
    config = make_config(epochs=3, keep=0.8, optimizer="adam", lr=0.01)
    attempt = attempt_at(tmp_path / "run", config, corpus)
    result = attempt.train()
    epochs, warnings = attempt.run.read_metrics()
    assert warnings == []
    assert [e["epoch"] for e in epochs] == [0, 1, 2]
    assert epochs[2]["elapsed_seconds"] == pytest.approx(sum(e["epoch_seconds"] for e in epochs))
    for record, phases in zip(epochs, (e["phases"] for e in epochs), strict=True):
        assert phases.keys() == {"start_up", "data", "step", "waiting", "checkpoint", "validation"} - (
            {"start_up"} if record["epoch"] else set()
        )
        assert math.fsum(phases.values()) >= record["epoch_seconds"], "each moment is in one of them"
    assert attempt.run.read_result() == result
    best = min(epochs, key=lambda e: e["val_loss"])
    assert result.best_epoch == best["epoch"]
    assert result.best_val_ppl == best["val_ppl"]
    last = load_checkpoint(attempt.run.last_checkpoint, config.fingerprint())
    assert last.history == epochs
    assert tuple(last.vocabulary) == corpus.vocabulary
    assert attempt.run.observe().state == "done"


@pytest.mark.slow
def test_the_best_checkpoint_holds_the_parameters_of_the_best_epoch(tmp_path: Path) -> None:
    """The validation text is the training text backwards: what a model learns of one makes the other worse."""
    data = tmp_path / "data"
    data.mkdir()
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    for split, order in (("train", words), ("valid", words[::-1]), ("test", words)):
        (data / f"{split}.txt").write_text((" ".join(order) + "\n") * 100, "utf-8")
    config = make_config("gru", optimizer="adam", lr=0.01, epochs=6)
    attempt = attempt_at(tmp_path / "run", config, load_corpus(config.data, data))
    attempt.train()
    losses = [e["val_loss"] for e in attempt.trainer.history]
    assert losses.index(min(losses)) < 3, "some epochs must follow the best one for this test to say anything"
    best = load_checkpoint(attempt.run.best_checkpoint, config.fingerprint())
    attempt.trainer.model.load_state_dict(best.model)
    assert attempt.trainer.evaluate("valid").mean == pytest.approx(min(losses), rel=1e-9)
    assert len(best.history) == losses.index(min(losses)) + 1


def test_metrics_cut_in_the_middle_of_a_line_are_whole_again_after_a_resume(tmp_path: Path, corpus: Corpus) -> None:
    config = make_config(epochs=2)
    attempt = attempt_at(tmp_path / "run", config, corpus)
    attempt.train()
    run = attempt.run
    whole = run.metrics_file.read_bytes()
    run.metrics_file.write_bytes(whole[:-40])
    run.result_file.unlink()
    epochs, warnings = run.read_metrics()
    assert len(epochs) == 1
    assert "line 2 is cut or damaged" in warnings[0]
    Attempt(run, corpus).train()
    assert run.metrics_file.read_bytes() == whole


EVERYTHING: dict[str, Any] = {"keep": 0.7, "embedding_keep": 0.8, "tied": True}
RECURRENT: dict[str, Any] = {**EVERYTHING, "weight_keep": 0.7, "embedding_size": 16}
WAYS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "rnn",
        RECURRENT,
        {"optimizer": "sgd", "lr": 0.2, "optim": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}},
    ),
    ("gru", RECURRENT, {"optimizer": "adamw", "lr": 0.01, "optim": {"schedule": "cosine", "decay_epochs": 4}}),
    (
        "transformer",
        EVERYTHING,
        {"optimizer": "adamw", "lr": 0.01, "optim": {"schedule": "linear", "decay_epochs": 3, "warmup_steps": 40}},
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "model", "optim"), WAYS, ids=[way[0] for way in WAYS])
def test_a_run_that_is_stopped_within_an_epoch_ends_as_one_that_is_not(
    tmp_path: Path, corpus: Corpus, arch: str, model: dict[str, Any], optim: dict[str, Any]
) -> None:
    config = make_config(arch, epochs=3, **model, **optim)
    quiet = attempt_at(tmp_path / "quiet", config, corpus)
    quiet.train()
    stopped = attempt_at(tmp_path / "stopped", config, corpus).stop_after(quiet.trainer.steps + 7)
    rates = set()
    stopped.before_each_step(lambda number: rates.add(stopped.trainer.optimizer.param_groups[0]["lr"]))
    with pytest.raises(StopRequested):
        stopped.train()
    assert len(rates) > 1 or "schedule" not in optim["optim"]
    Attempt(stopped.run, corpus).train()
    assert outcome(stopped.run) == outcome(quiet.run)


def test_words_and_weights_that_are_dropped_change_from_step_to_step(tmp_path: Path, corpus: Corpus) -> None:
    trainer = attempt_at(
        tmp_path / "run", make_config("gru", weight_keep=0.5, embedding_keep=0.5, lr=1e-12), corpus
    ).trainer
    trainer.model.train()
    tokens = trainer.columns[:5]
    losses = []
    for number in (0, 1, 0):
        trainer.set_step(1, number)
        losses.append(trainer.model.loss(tokens, tokens, trainer.model.initial_state(8))[0].item())
    assert losses[0] == losses[2] != losses[1]


def test_dropout_masks_differ_between_epochs_and_seeds(tmp_path: Path, corpus: Corpus) -> None:
    attempt = attempt_at(tmp_path / "a", make_config(lr=1e-12, keep=0.5, epochs=2), corpus)
    attempt.train()
    first, second = (e["train_loss"] for e in attempt.trainer.history)
    assert first != second, "with a vanishing learning rate only the masks can make a difference"
    assert attempt.trainer.history[0]["val_loss"] == pytest.approx(attempt.trainer.history[1]["val_loss"], rel=1e-9)


def test_a_non_finite_loss_stops_before_the_optimizer_step_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, corpus: Corpus
) -> None:
    config = make_config(epochs=3)
    attempt = attempt_at(tmp_path / "run", config, corpus)
    good: dict[str, torch.Tensor] = {}

    def poison(number: int) -> None:
        if len(attempt.trainer.history) == 1:
            with torch.no_grad():
                next(attempt.trainer.model.parameters()).fill_(math.nan)
            good.update({name: p.clone() for name, p in attempt.trainer.model.named_parameters()})

    attempt.before_each_step(poison)
    with pytest.raises(DivergedError, match="the loss of a step is nan"):
        attempt.train()
    kept = load_checkpoint(attempt.run.last_checkpoint, config.fingerprint())
    assert [e["epoch"] for e in kept.history] == [0]
    assert all(torch.isfinite(tensor).all() for tensor in kept.model.values())
    for name, parameter in attempt.trainer.model.named_parameters():
        unmoved = torch.allclose(parameter, good[name], rtol=0, atol=0, equal_nan=True)
        assert unmoved, "no parameter moved in the step that diverged"


def test_a_validation_loss_without_a_perplexity_is_diverged(tmp_path: Path, corpus: Corpus) -> None:
    attempt = attempt_at(tmp_path / "run", make_config(optimizer="sgd", lr=1e30, epochs=2), corpus)
    with pytest.raises(DivergedError, match=r"after epoch 1 the validation loss is .* too large for a perplexity"):
        attempt.train()
    assert not attempt.run.result_file.exists()


def test_a_batch_or_window_larger_than_the_data_is_named_before_training(tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(DataError, match=r"valid split has \d+ tokens: batch_size 300"):
        attempt_at(tmp_path / "a", make_config(batch_size=300, seq_len=1), corpus)
    with pytest.raises(DataError, match="seq_len 1,000 needs"):
        attempt_at(tmp_path / "b", make_config(seq_len=1000), corpus)


def test_perplexity_is_one_place_and_never_hides_what_is_not_finite() -> None:
    assert perplexity(math.log(10_000)) == pytest.approx(10_000)
    assert perplexity(1e6) == math.inf
    assert math.isnan(perplexity(math.nan))
    total = TokenLoss()
    assert math.isnan(total.mean)
    total.add(6.0, 3)
    total.add(2.0, 1)
    assert total.mean == 2.0


def test_a_nan_epoch_is_never_the_best() -> None:
    assert best_epoch([{"val_loss": math.nan}, {"val_loss": 5.0}, {"val_loss": 5.0}]) == 1


@pytest.mark.slow
def test_a_run_ends_in_the_same_whatever_number_of_steps_is_read_at_once(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where a run that is resumed reads after other steps than one that is not."""
    config = make_config("gru", optimizer="adam", lr=0.01, keep=0.7)
    each = attempt_at(tmp_path / "each", config, corpus)
    each.train()
    monkeypatch.setattr("seqlm.training.trainer.StepResults", lambda rank, most: StepResults(rank, most=4))
    run = attempt_at(tmp_path / "several", config, corpus).run
    for stop in (3, 6, 0):
        with contextlib.suppress(StopRequested):
            Attempt(run, corpus).stop_after(stop).train()
    assert outcome(run) == outcome(each.run)


@pytest.mark.slow
def test_a_checkpoint_of_before_that_lacks_the_generators_of_cpus_goes_on(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("gru", keep=0.7)
    quiet = attempt_at(tmp_path / "quiet", config, corpus)
    quiet.train()
    stopped = attempt_at(tmp_path / "stopped", config, corpus)
    with pytest.raises(StopRequested):
        stopped.stop_after(3).train()
    content = torch.load(stopped.run.last_checkpoint, weights_only=True)
    del content["position"]["cpu_generators"]
    torch.save(content, stopped.run.last_checkpoint)
    Attempt(stopped.run, corpus).train()
    assert outcome(stopped.run) == outcome(quiet.run)
