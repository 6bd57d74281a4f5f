"""``study.json``: what a launch writes for readers of the study's folder alone.

``python -m tests.jobs.plan.test_study_record`` writes ``study_record.json`` again; read its diff.
"""

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.launch.job import Order, StudySettings
from jobs.launch.prepare import preparing, resolve_specs
from jobs.manifests.load import Manifest, load_manifest
from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun, plan
from jobs.plan.record import record_of, write_record
from jobs.study.launched import trust_study
from jobs.study.record import KeptManifests
from seqlm.files import write_json_lines
from seqlm.records.studies import Entry, StudyFile
from seqlm.rundir import RunDirectory, study_record_file
from seqlm.search import Search
from tests.fakes import FakeBackend, make_estimate
from tests.seqlm.training.studies import write_text

RUN = '[[run]]\nmodel.arch = "rnn"\nmodel.hidden_size = 4\noptim.optimizer = "sgd"\noptim.lr = 1\n'


def keep(folder: Path, text: str) -> Manifest:
    """The manifest whose record is in the folder now."""
    path = folder / "m.toml"
    path.write_text(f'[study]\nname = "m"\n{text}\n{RUN}')
    manifest = load_manifest(path)
    record_of(manifest, manifest.runs, None).write(folder)
    return manifest


def test_the_policy_the_search_and_the_tables_of_all_backends_are_kept(tmp_path: Path) -> None:
    manifest = keep(
        tmp_path,
        '[policy]\noom = 7\npreempted = 2\ntimeout = "unlimited"\n[backend.ray]\nmax_parallel = 3\nenv = {A = "b"}\n'
        'env_pass = ["HF_TOKEN"]\n[backend.slurm]\ntimeout_min = 7\n[search]\nrungs = [3]\nkeep = 0.5',
    )
    trust_study(tmp_path, pytest.fail)
    found, none = (KeptManifests(folder, pytest.fail) for folder in (tmp_path, tmp_path / "older"))
    assert found.policy == manifest.policy == Policy(oom=7, preempted=2, timeout=None)
    assert found.search == manifest.search == Search(rungs=(3,), keep=0.5)
    assert (found.backends, found.manifest) == (manifest.backend, manifest.path)
    assert (none.policy, none.search, none.backends, none.planned) == (None, None, {}, [])


def test_of_what_looks_like_a_secret_the_name_is_kept(tmp_path: Path) -> None:
    keep(tmp_path, '[backend.ray]\nenv = {A = "b", HF_TOKEN = "oops"}\nenv_pass = ["PIN"]')
    trust_study(tmp_path, pytest.fail)
    assert KeptManifests(tmp_path).backends == {"ray": {"env": {"A": "b"}, "env_pass": ["PIN", "HF_TOKEN"]}}
    assert "oops" not in study_record_file(tmp_path).read_text()


@pytest.mark.parametrize(
    "content",
    [
        '{"policy": ',
        '{"policy": 3}',
        '{"policy": {"oom": -1}}',
        '{"search": {"x": 1}}',
        '{"backend": 3}',
        '{"backend": {"ray": 3}}',
        '{"backend": {"rya": {}}}',
        '{"backend": {"ray": {"max_parallel": 0}}}',
    ],
)
def test_what_is_damaged_is_told_once_and_is_as_if_it_were_not_given(tmp_path: Path, content: str) -> None:
    study_record_file(tmp_path).write_text(content)
    told: list[str] = []
    found = KeptManifests(tmp_path, told.append)
    assert (found.policy, found.search, found.backends) == (None, None, {})
    assert len(told) == 1
    assert told[0].startswith("warning: ")


def test_damage_to_one_part_leaves_all_others(tmp_path: Path) -> None:
    manifest = keep(tmp_path, "[policy]\noom = 7\n[search]\nrungs = [3]\nkeep = 0.5\n[backend.local]\nmax_parallel = 2")
    trust_study(tmp_path, pytest.fail)
    sound = json.loads(study_record_file(tmp_path).read_text())
    whole = KeptManifests(tmp_path)
    expected = {
        "policy": manifest.policy,
        "search": manifest.search,
        "backend": manifest.backend,
        "planned": whole.planned,
        "manifest": manifest.path,
    }
    for part in sound:
        study_record_file(tmp_path).write_text(json.dumps({**sound, part: ["damage"] if part != "samples" else 3}))
        told: list[str] = []
        found = KeptManifests(tmp_path, told.append)
        values = {
            "policy": found.policy,
            "search": found.search,
            "backend": found.backends,
            "planned": [replace(entry) for entry in found.planned],
            "manifest": found.manifest,
        }
        hit = {"folder": "manifest"}.get(part, part)
        if part != "behaviour":  # of which the damage is one fingerprint, as far as a reader can see
            assert len(told) == 1
            assert part in told[0]
        kept = {name: value for name, value in values.items() if name != hit}
        if part == "manifest":
            kept.pop("planned")  # in the order of the manifests
        assert kept == {name: expected[name] for name in kept}


TEXT = """
[study]
name = "s"
[defaults]
model.hidden_size = 8
model.num_layers = 1
model.embedding_size = 4
data.corpus = "files"
optim.lr = 1.0
train.batch_size = 4
train.seq_len = 5
train.epochs = 4
[[grid]]
name = "grid"
model.arch = ["rnn", "gru"]
optim.optimizer = ["sgd", "adam"]
[[run]]
name = "known"
model.arch = "rnn"
optim.optimizer = "sgd"
model.hidden_size = 6
published.val_ppl = 9.5
published.replications = [9, 10]
[[exclude]]
model.arch = "gru"
optim.optimizer = "adam"
[[expect]]
text = "gates help"
lower = "arch=gru"
higher = "arch=rnn optimizer=sgd"
otherwise = "they do not"
[report]
behaviour = ["known"]
groups.RNNs = ["grid-rnn-*"]
notes.effects = "Width first: {run.known.val_ppl}."
"""


def manifest_in(folder: Path, text: str = TEXT, *overrides: str) -> Manifest:
    (folder / "my.toml").write_text(text)
    return load_manifest(folder / "my.toml", overrides)


RECORD = Path(__file__).with_name("study_record.json")


def recorded(folder: Path, *, chosen: slice = slice(None)) -> str:
    """The record of the manifest, with names of runs in place of fingerprints."""
    text = write_text(folder / "text")
    manifest = manifest_in(folder)
    specs = resolve_specs(manifest.runs, text)
    found = json.dumps(record_of(manifest, specs[chosen], text).to_plain(), indent=1)
    for old, new in [(str(folder), "FOLDER"), *((spec.fingerprint, spec.name) for spec in specs)]:
        found = found.replace(old, new)
    return re.sub(r'"data.sha256": "\w+"', '"data.sha256": "SHA-256"', found) + "\n"


@pytest.mark.parametrize("chosen", [slice(None), slice(1, 2)], ids=["all", "one"])
def test_the_record_has_all_runs_of_the_manifest_whatever_is_launched(tmp_path: Path, chosen: slice) -> None:
    assert recorded(tmp_path, chosen=chosen) == RECORD.read_text("utf-8")


def test_a_run_that_is_not_launched_may_lack_its_text(tmp_path: Path) -> None:
    other = TEXT.replace('corpus = "files"', 'corpus = "ptb"').replace(
        'name = "known"', 'name = "known"\ndata.corpus = "files"'
    )
    manifest = manifest_in(tmp_path, other)
    record = record_of(manifest, manifest.runs[:1], tmp_path / "absent")
    assert [run.fingerprint for run in record.planned] == [run.fingerprint for run in manifest.runs]


def test_a_note_may_refer_to_a_run_that_only_set_completes(tmp_path: Path) -> None:
    """What the run is called without ``--set`` cannot be known, so a reference is recorded if it names a run."""
    text = TEXT.replace("optim.lr = 1.0\n", "").replace("Width first:", "{run.known-lr9.gap} and")
    manifest = manifest_in(tmp_path, text, "optim.lr=0.5")
    (note,) = record_of(manifest, manifest.runs[:1], tmp_path / "absent").notes
    assert note.text == "{run.known-lr9.gap} and {run.known.val_ppl}."
    assert list(note.runs) == ["known"]


def test_set_changes_only_whose_behaviour_is_examined(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text")
    plain, halved = (
        record_of(found, found.runs, text).to_plain()
        for found in (manifest_in(tmp_path), manifest_in(tmp_path, TEXT, "optim.lr=0.5"))
    )
    assert {key for key in plain if plain[key] != halved[key]} == {"behaviour"}
    assert halved["behaviour"][0] == plain["behaviour"][0]
    assert len(halved["behaviour"]) == 2, "the planned run and the one of this launch"


def test_the_plans_of_other_manifests_are_kept_and_numbered_through(tmp_path: Path) -> None:
    def entry(manifest: str, digits: str, number: int) -> Entry:
        return Entry(manifest=manifest, fingerprint=digits, number=number)

    for manifest, digits in (("a", "12"), ("b", "234"), ("a", "15")):
        planned = tuple(entry(manifest, digit, number) for number, digit in enumerate(digits, start=1))
        write_record(tmp_path, StudyFile(manifest=manifest, planned=planned), [], pytest.fail)
    found = StudyFile.read(tmp_path)
    assert found is not None
    assert found.planned == (entry("a", "1", 1), entry("a", "5", 2), entry("b", "3", 3), entry("b", "4", 4))


# -- estimates -----------------------------------------------------------------------------------------------------


def items(folder: Path, count: int = 2) -> list[PlannedRun]:
    specs = resolve_specs(manifest_in(folder).runs, write_text(folder / "text"))[:count]
    made = []
    for spec in specs:
        run = RunDirectory.locate(folder / "runs" / "s", spec.name, spec.fingerprint)
        made.append(plan(spec, run, run.observe(), has_checkpoint=False, retry=False))
    return made


def written(folder: Path, todo: Sequence[PlannedRun], seconds: float | None) -> list[float | None]:
    """What ``study.json`` holds of estimates after a launch that does ``todo``."""
    folder.mkdir(exist_ok=True)
    write_record(
        folder, StudyFile(version=3), [replace(item, estimate=make_estimate(seconds)) for item in todo], pytest.fail
    )
    estimates = json.loads(study_record_file(folder).read_text())["estimates"]
    assert all(found["epochs"] == 4 for found in estimates.values())
    return [found["seconds"] for found in estimates.values()]


def test_the_estimate_of_a_runs_first_launch_stands(tmp_path: Path) -> None:
    first, second = items(tmp_path)
    assert written(tmp_path / "s", [first], 3.5) == [3.5]
    assert written(tmp_path / "s", [first, second], 1.0) == [3.5, 1.0]
    before = study_record_file(tmp_path / "s").stat()
    assert written(tmp_path / "s", [], 2.0) == [3.5, 1.0], "a launch that has nothing to do keeps them"
    assert written(tmp_path / "s", [second], 2.0) == [3.5, 1.0]
    after = study_record_file(tmp_path / "s").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_estimate_without_a_time_gives_way_to_one_with_a_time_before_anything_is_done(tmp_path: Path) -> None:
    first, second = items(tmp_path)
    written(tmp_path / "s", [first, second], None)
    assert written(tmp_path / "s", [first, replace(second, action="resume")], 3.5) == [3.5, None]


@pytest.mark.parametrize("content", ['{"version": ', "[]", "\x00"], ids=lambda text: repr(text))
def test_a_damaged_file_is_written_anew_with_a_warning(tmp_path: Path, content: str) -> None:
    study_record_file(tmp_path).write_text(content)
    told: list[str] = []
    todo = [replace(item, estimate=make_estimate(1.0)) for item in items(tmp_path)]
    write_record(tmp_path, StudyFile(version=3), todo, told.append)
    assert len(told) == 1
    assert told[0].startswith("warning: ")
    assert len(json.loads(study_record_file(tmp_path).read_text())["estimates"]) == 2


@pytest.mark.parametrize("estimates", [[], {"DIGITS": 3}, {"DIGITS": {"seconds": 2.0, "epochs": 0}}])
def test_an_estimate_that_is_damaged_is_made_anew(tmp_path: Path, estimates: Any) -> None:
    (item,) = items(tmp_path, 1)
    text = json.dumps({"version": 3, "estimates": estimates}).replace("DIGITS", item.spec.fingerprint)
    (tmp_path / "s").mkdir()
    study_record_file(tmp_path / "s").write_text(text)
    told: list[str] = []
    write_record(tmp_path / "s", StudyFile(), [replace(item, estimate=make_estimate(1.0))], told.append)
    found = StudyFile.read(tmp_path / "s")
    assert found is not None
    assert [one.seconds for one in found.estimates.values()] == [1.0]
    assert len(told) == 1


def test_a_file_that_cannot_be_written_stops_no_launch(tmp_path: Path) -> None:
    study_record_file(tmp_path).mkdir()
    told: list[str] = []
    write_record(tmp_path, StudyFile(version=3), [], told.append)
    assert len(told) == 2
    assert told[1].endswith("the report will lack the facts of the manifest")


# -- in a launch ---------------------------------------------------------------------------------------------------


def launched(folder: Path, chosen: slice, *, recorded: bool = True) -> list[RunDirectory]:
    """Prepare a launch of some runs, as every backend does; returns the folders of those to do."""
    text = write_text(folder / "text")
    manifest = manifest_in(folder)
    specs = resolve_specs(manifest.runs[chosen], text)
    record = record_of(manifest, specs, text) if recorded else None
    study, order = StudySettings(path=folder / "runs" / "s"), Order(specs=specs, live_code=True, record=record)
    with preparing(study, order, FakeBackend(lambda submission: 0)) as (planned, _):
        return [item.run for item in planned if item.action != "skip"]


@pytest.mark.process
def test_a_launch_writes_what_plan_would_have_said_of_its_runs(tmp_path: Path) -> None:
    first, second = launched(tmp_path, slice(0, 2))
    file = study_record_file(tmp_path / "runs" / "s")
    record = json.loads(file.read_text())
    assert len(record["planned"]) == 4
    prints = [run.read_config().fingerprint() for run in (first, second)]
    assert record["estimates"] == {key: {"seconds": None, "epochs": 4} for key in prints}

    epoch = {"epoch": 0, "val_ppl": 9.0, "train_tokens_per_second": 10.0}
    second.create_as_launched()
    write_json_lines(second.metrics_file, [epoch])
    second.last_checkpoint.write_bytes(b"")
    second.attempt_dir(1).mkdir(parents=True)
    launched(tmp_path, slice(0, 3))
    record = json.loads(file.read_text())
    seconds = {run["name"]: record["estimates"].get(run["fingerprint"], {}).get("seconds") for run in record["planned"]}
    assert seconds["grid-rnn-sgd"] is not None, "it has not begun, and another RNN has told the speed"
    assert seconds["grid-rnn-adam"] is None, "it is half done"
    assert seconds["grid-gru-sgd"] is None, "no GRU has told its speed"


@pytest.mark.process
def test_a_launch_without_a_manifest_leaves_the_record_alone(tmp_path: Path) -> None:
    launched(tmp_path, slice(0, 1), recorded=False)
    assert not study_record_file(tmp_path / "runs" / "s").exists()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        RECORD.write_text(recorded(Path(name)), "utf-8")
