"""A tokenizer file from the manifest to the run: found beside the manifest, part of the identity, kept with the run."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.launch.prepare import changes, check_data, plan_runs, resolve_specs
from jobs.manifests.load import load_manifest
from jobs.plan.record import record_of, write_record
from jobs.spec import RunSpec
from jobs.study.folder import observe_study
from seqlm.data.corpus import load_corpus
from seqlm.errors import DataError, UsageError
from seqlm.records.runs import Provenance
from seqlm.rundir import RunDirectory
from tests.seqlm.data.bpe import train_tokenizer
from tests.seqlm.training.studies import write_text

TEXT = """
[study]
name = "s"
[defaults]
model = { hidden_size = 8, num_layers = 1, embedding_size = 4 }
data.corpus = "files"
optim = { optimizer = "sgd", lr = 1.0 }
train = { batch_size = 4, seq_len = 5, epochs = 1 }
[[grid]]
model.arch = ["rnn", "gru"]
data.tokenizer = "tokenizers/bpe.json"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEQLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my/tokenizers").mkdir(parents=True)
    train_tokenizer(tmp_path / "my/tokenizers/bpe.json")
    write_text(tmp_path / "text")
    return tmp_path


def specs_of(folder: Path, text: str = TEXT) -> list[RunSpec]:
    (folder / "my/my.toml").write_text(text)
    return resolve_specs(load_manifest(folder / "my/my.toml").runs, folder / "text")


def launch(folder: Path) -> list[RunSpec]:
    """What a launch writes before its first job."""
    specs, study_dir = specs_of(folder), folder / "runs/s"
    for spec in specs:
        run = RunDirectory.locate(study_dir, spec.name, spec.fingerprint)
        run.create(spec.config, Provenance(name=spec.name, data=str(folder / "text")), spec.tokenizer)
    manifest = load_manifest(folder / "my/my.toml")
    write_record(study_dir, record_of(manifest, specs, folder / "text"), [], print)
    return specs


def edit(folder: Path) -> Path:
    return train_tokenizer(folder / "my/tokenizers/bpe.json", vocab_size=270)


def test_the_size_of_the_vocabulary_comes_from_the_file_beside_the_manifest(folder: Path) -> None:
    first, _ = check_data(plan_runs(specs_of(folder), folder / "runs/s"))
    assert first.spec.tokenizer == folder / "my/tokenizers/bpe.json"
    assert first.facts is not None
    assert first.facts.vocab_size == 280


def test_an_edit_while_jobs_wait_changes_nothing(folder: Path) -> None:
    launch(folder)
    run, other = (one.run for one in observe_study(folder / "runs/s"))
    before = load_corpus(run.read_config().data, folder / "text", run.tokenizer_file)
    edit(folder)
    (folder / "cache").rename(folder / "old-cache")
    assert load_corpus(run.read_config().data, folder / "text", run.tokenizer_file) == before
    assert run.tokenizer_file.read_bytes() == other.tokenizer_file.read_bytes()
    again = observe_study(folder / "runs/s")[0].to_spec()
    assert again.tokenizer == run.tokenizer_file
    assert check_data(plan_runs([again], folder / "runs/s"))[0].run == run


def test_a_changed_file_is_named_before_anything_starts(folder: Path) -> None:
    before = launch(folder)
    edit(folder)
    after = specs_of(folder)
    assert {spec.fingerprint for spec in before}.isdisjoint(spec.fingerprint for spec in after)
    (line,) = changes(check_data(plan_runs(after, folder / "runs/s")), folder / "runs/s")
    assert "tokenizers/bpe.json has changed" in line
    for spec in (before[0], after[0]):
        assert str(spec.config.data.tokenizer_sha256)[:12] in line
    assert changes(check_data(plan_runs(after, folder / "runs/new")), folder / "runs/new") == []


def test_a_file_that_changes_between_planning_and_starting_is_noticed(folder: Path) -> None:
    spec = specs_of(folder)[0]
    edit(folder)
    with pytest.raises(UsageError, match="has changed since the launch began; launch again"):
        RunDirectory(folder / "runs/s/x").create(spec.config, Provenance(), spec.tokenizer)


def test_a_renamed_file_is_the_same_run_and_equal_files_are_no_two_runs(folder: Path) -> None:
    (folder / "my/copy.json").write_bytes((folder / "my/tokenizers/bpe.json").read_bytes())
    renamed = specs_of(folder, TEXT.replace("tokenizers/bpe.json", "copy.json"))
    assert [spec.fingerprint for spec in renamed] == [spec.fingerprint for spec in specs_of(folder)]
    with pytest.raises(DataError, match="are the same run, since their tokenizer files are equal"):
        specs_of(folder, TEXT.replace('"tokenizers/bpe.json"', '["tokenizers/bpe.json", "copy.json"]'))


def test_a_folder_launched_under_the_old_name_of_the_file_is_used_again(folder: Path) -> None:
    spec = launch(folder)[0]
    run = RunDirectory.locate(folder / "runs/s", spec.name, spec.fingerprint)
    renamed = replace(spec.config, data=replace(spec.config.data, tokenizer="other.json"))
    run.create(renamed, Provenance(), spec.tokenizer)
    assert run.read_config().data.tokenizer == "tokenizers/bpe.json"


def test_a_missing_file_is_one_line(folder: Path) -> None:
    (folder / "my/tokenizers/bpe.json").unlink()
    with pytest.raises(DataError, match=r"tokenizers/bpe\.json does not exist; expected a tokenizer.json of the"):
        specs_of(folder)
