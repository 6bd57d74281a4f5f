"""A user's own model trains as those of seqlm do: exact resume, several ranks, micro-batches, a state of any form."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seqlm.architectures import CustomConfig
from seqlm.config import RunConfig
from seqlm.data.corpus import Corpus, load_corpus
from seqlm.errors import ModelError
from seqlm.model_files import read_model_files
from seqlm.models import build_model
from seqlm.models.language_model import hidden_states_of
from seqlm.models.state import join_states, map_state, split_state, tensors_of
from seqlm.records.runs import Provenance
from seqlm.rundir import RunDirectory
from seqlm.training.attempt import StopRequested
from seqlm.training.checkpoint import load_checkpoint
from seqlm.training.failure import describe_failure, failure_text
from tests.outcome import outcome
from tests.seqlm.check_model.faulty import write_model
from tests.seqlm.check_model.zoo import sound
from tests.seqlm.training.studies import Attempt, make_config, write_text

EXAMPLES = Path(__file__).parents[3] / "examples"
ZOO = Path(sound.__file__).parent
OWN: dict[str, tuple[Path, dict[str, Any]]] = {
    "lstm": (
        EXAMPLES / "lstm",
        {
            "source": "lstm.py:LSTM",
            "arguments": {"hidden_size": 8, "keep": 0.7, "embedding_keep": 0.9, "weight_keep": 0.8, "tied": True},
        },
    ),
    "minGRU": (
        EXAMPLES / "min_gru",
        {"source": "min_gru.py:MinGRU", "files": ["causal.py"], "arguments": {"hidden_size": 8, "width": 3}},
    ),
    "columns side by side": (ZOO, {"source": "sound.py:OrthogonalRNN", "arguments": {"hidden_size": 8}}),
}


def own_run(folder: Path, name: str, **train: Any) -> tuple[RunDirectory, RunConfig]:
    """A run of an example, with its files, as a launcher would make it."""
    source, model = OWN[name]
    config = replace(make_config(optimizer="adam", lr=0.02, **train), model=CustomConfig(arch="custom", **model))
    assert isinstance(config.model, CustomConfig)
    files = read_model_files(config.model, source)
    config = replace(config, model=replace(config.model, sha256=files.sha256))
    run = RunDirectory(folder)
    run.create(config, Provenance(name=name), model_files=files)
    return run, config


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return load_corpus(make_config().data, write_text(tmp_path / "text", train_lines=60))


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_a_stop_in_mid_epoch_changes_no_bit(tmp_path: Path, corpus: Corpus, name: str) -> None:
    quiet, _ = own_run(tmp_path / "quiet", name)
    Attempt(quiet, corpus).train()
    run, _ = own_run(tmp_path / "stopped", name)
    with pytest.raises(StopRequested):
        Attempt(run, corpus).stop_after(4).train()
    Attempt(run, corpus).train()
    assert outcome(run) == outcome(quiet)


@pytest.mark.parametrize("name", OWN)
def test_a_state_can_be_cut_and_joined_along_its_batch(tmp_path: Path, name: str) -> None:
    run, config = own_run(tmp_path / "run", name)
    model = build_model(config.model, 9, 5, folder=run.model_dir)
    state = map_state(torch.randn_like, model.initial_state(5))
    parts = split_state(state, 3, model.batch_axis)
    assert [tensors_of(part)[0].shape[model.batch_axis] for part in parts] == [2, 2, 1]
    pairs = zip(tensors_of(join_states(parts, model.batch_axis)), tensors_of(state), strict=True)
    assert all(torch.equal(joined, whole) for joined, whole in pairs)


def test_a_tied_parameter_is_saved_once_under_its_two_names(tmp_path: Path, corpus: Corpus) -> None:
    write_model(tmp_path, ("# init", "self.output.weight = self.embedding.weight"))
    files = read_model_files(CustomConfig(arch="custom", source="model.py:Model"), tmp_path)
    config = replace(make_config(), model=CustomConfig(arch="custom", source="model.py:Model", sha256=files.sha256))
    run = RunDirectory(tmp_path / "run")
    run.create(config, Provenance(), model_files=files)
    attempt = Attempt(run, corpus)
    attempt.train()
    for path in (run.last_checkpoint, run.best_checkpoint):
        saved = load_checkpoint(path, config.fingerprint()).model
        assert {"module.embedding.weight", "module.output.weight"} < set(saved)
        storages = {tensor.untyped_storage().data_ptr() for tensor in saved.values()}
        assert len(storages) == len(saved) - 1
    trained = dict(attempt.trainer.model.named_parameters())
    assert all(torch.equal(tensor, saved[name]) for name, tensor in trained.items()), "the best epoch's"


def test_the_worker_trains_the_kept_copy_and_refuses_a_changed_one(tmp_path: Path, corpus: Corpus) -> None:
    source = write_model(tmp_path)
    model = CustomConfig(arch="custom", source="model.py:Model")
    files = read_model_files(model, tmp_path)
    config = replace(make_config(), model=replace(model, sha256=files.sha256))
    run = RunDirectory(tmp_path / "study" / "run")
    run.create(config, Provenance(), model_files=files)
    source.write_text("this is no Python any more")
    Attempt(run, corpus)
    (run.model_dir / "model.py").write_text(source.read_text())
    with pytest.raises(ModelError, match=r"model\.sha256: model\.py in .*/model changed: expected sha256"):
        Attempt(run, corpus)
    with pytest.raises(ModelError, match=r"model\.py has changed since its run was launched"):
        run.create(config, Provenance(), model_files=files)


def test_the_log_of_a_worker_has_the_traceback_of_the_users_code(tmp_path: Path) -> None:
    write_model(tmp_path, ("# init", "1 / 0"))
    config = CustomConfig(arch="custom", source="model.py:Model")
    with pytest.raises(ModelError) as caught:
        build_model(config, 9, 5, folder=tmp_path)
    text = failure_text(caught.value)
    assert "Traceback (most recent call last)" in text
    assert text.splitlines()[-1].startswith(
        "error: model.arguments: Model cannot be made with no arguments: ZeroDivision"
    )


def test_a_failure_in_the_users_code_has_its_file_and_line(tmp_path: Path) -> None:
    """Also if the error is raised in a library that the code calls, and not if it is seqlm's own."""
    write_model(tmp_path, ("# hidden", "h = h @ self.output.weight"))
    model = build_model(CustomConfig(arch="custom", source="model.py:Model"), 9, 5, folder=tmp_path)
    number = 1 + (tmp_path / "model.py").read_text().splitlines().index("        h = h @ self.output.weight")
    for tokens, is_own in ((torch.zeros(5, 2, dtype=torch.int64), True), (None, False)):
        with pytest.raises(Exception, match=r"\w") as caught:
            model(tokens, model.initial_state(2)) if is_own else model.initial_state()
        failure = describe_failure(caught.value, rank=0)
        assert (f"(model.py line {number})" in failure.message) == is_own
        assert "model.py" in failure.message or not is_own


def test_bf16_needs_a_model_that_takes_the_type_of_its_products(tmp_path: Path) -> None:
    write_model(tmp_path)
    config = CustomConfig(arch="custom", source="model.py:Model")
    with pytest.raises(ModelError, match=r"train\.precision: model\.py:Model takes no argument product_dtype"):
        build_model(config, 9, 5, torch.bfloat16, tmp_path)
    write_model(tmp_path, ("hidden_size=8", "hidden_size=8, product_dtype=None"))
    assert build_model(config, 9, 5, torch.bfloat16, tmp_path).vocab_size == 9


def test_a_model_without_a_state_generates_from_its_last_window(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        ("return self.output.weight.new_zeros(batch_size, self.hidden_size)", "return None"),
        ("outputs = []", "outputs, state = [], self.output.weight.new_zeros(tokens.shape[1], self.hidden_size)"),
        ("return logits, state", "return logits, None"),
    )
    model = build_model(CustomConfig(arch="custom", source="model.py:Model"), 9, 3, folder=tmp_path).eval()
    tokens = torch.tensor([[1], [2], [3], [4], [5]])
    predict = model.predictor(model.initial_state(1))
    with torch.no_grad():
        for token in tokens:
            logits = predict(token)
        expected, _ = model(tokens[-3:], None)
    torch.testing.assert_close(logits, expected[-1])


LOSS = """
    def loss(self, tokens, targets, state):
        return self(tokens, state)[0].sum() * 0 + 7, state
"""


def test_a_subclass_of_language_model_may_override_its_loss(tmp_path: Path) -> None:
    write_model(
        tmp_path,
        ("import random", "from seqlm.models import LanguageModel"),
        ("class Model(nn.Module):", "class Model(LanguageModel):"),
        ("# init", "self.hidden_states = nn.ModuleList([self.W])"),
        ("    def initial_state", f"{LOSS}\n    def initial_state"),
    )
    model = build_model(CustomConfig(arch="custom", source="model.py:Model"), 9, 3, folder=tmp_path)
    tokens = torch.zeros(3, 2, dtype=torch.int64)
    assert float(model.loss(tokens, tokens, model.initial_state(2))[0].detach()) == 7
    assert hidden_states_of(model) == [model.W]
    assert model.token_losses(tokens, tokens, model.initial_state(2))[0].shape == (3, 2)
