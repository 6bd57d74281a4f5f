"""The manifest: what a right one expands to, and the line that each wrong one gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.manifests.entries import SET_KEYS
from jobs.manifests.filters import facts_of_spec, select
from jobs.manifests.load import Manifest, load_manifest
from seqlm.errors import OTHER_WORDS, ManifestError, UsageError, same_key

ROOT = Path(__file__).parents[3]

HEAD = '[study]\nname = "s"\n'
DEFAULTS = """
[defaults]
model.hidden_size = 8
model.num_heads = 2
data.corpus = "pydoc"
optim.lr = 1.0
"""
RUN = '\n[[run]]\nmodel.arch = "rnn"\noptim.optimizer = "sgd"\n'
BASE = HEAD + DEFAULTS
GOOD = BASE + RUN


def load(folder: Path, text: str, *overrides: str) -> Manifest:
    path = folder / "study.toml"
    path.write_text(text, "utf-8")
    return load_manifest(path, overrides)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        load(folder, text, *overrides)
    assert all(line.isprintable() for line in caught.value.problems), "each problem is one line"
    return [line.replace(f"{folder}/", "") for line in caught.value.problems]


def names(manifest: Manifest) -> list[str]:
    return [run.name for run in manifest.runs]


def names_of_excluded(manifest: Manifest) -> tuple[str, ...]:
    return tuple(run["name"] for run in manifest.excluded)


# -- what a right manifest means -----------------------------------------------------------------------------------


TOML = """
seeds = [1, 2]
[study]
name = "same"
data = "texts"
[defaults]
model.hidden_size = 8
data.corpus = "pydoc"
train = { epochs = 3 }
[[grid]]
name = "g"
model.arch = ["rnn", "gru"]
optim.optimizer = "adam"
optim.lr = [1e-4, 0.5]
[[exclude]]
model.arch = "rnn"
optim.lr = 1e-4
[resources]
ranks = 2
"""


def test_a_path_is_relative_to_the_manifest_and_a_run_may_be_excluded_by_its_settings(tmp_path: Path) -> None:
    manifest = load(tmp_path, TOML)
    assert manifest.data_path == tmp_path / "texts"
    assert names_of_excluded(manifest) == ("g-rnn-lr0.0001-seed1", "g-rnn-lr0.0001-seed2")


def test_a_grid_multiplies_its_lists_the_last_one_turning_fastest(tmp_path: Path) -> None:
    text = BASE + '[[grid]]\nname = "g"\nmodel.arch = "gru"\noptim.optimizer = "sgd"\n'
    text += "optim.lr = [0.1, 1e-5]\nmodel.hidden_size = [4, 512]\nseeds = [1, 2]\n"
    manifest = load(tmp_path, text)
    assert names(manifest)[:3] == ["g-hidden4-lr0.1-seed1", "g-hidden4-lr0.1-seed2", "g-hidden4-lr1e-5-seed1"]
    assert len(manifest.runs) == 8


def test_a_problem_names_the_file_as_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for text in (BASE + "x = 1\n", "x"):
        (tmp_path / "sub" / "study.toml").write_text(text)
        with pytest.raises(ManifestError) as caught:
            load_manifest(Path("sub/study.toml"))
        assert all(line.startswith("sub/study.toml: ") for line in caught.value.problems)


def test_a_zip_advances_its_lists_together_and_scalars_hold_for_all(tmp_path: Path) -> None:
    text = BASE + '[[zip]]\nmodel.arch = ["rnn", "gru"]\noptim.optimizer = "sgd"\noptim.lr = [0.1, 2.0]\n'
    runs = load(tmp_path, text).runs
    assert [(run.name, run.config.optim.lr) for run in runs] == [("rnn-sgd-lr0.1", 0.1), ("gru-sgd-lr2", 2.0)]


def test_a_name_carries_a_suffix_for_what_varies_and_nothing_else(tmp_path: Path) -> None:
    text = BASE + '[[grid]]\nname = "g"\nmodel.arch = ["rnn", "gru"]\noptim.optimizer = ["sgd"]\ntrain.epochs = [3]'
    assert names(load(tmp_path, text)) == ["g-rnn", "g-gru"]


def test_seeds_make_a_copy_of_every_run_and_the_entrys_own_go_first(tmp_path: Path) -> None:
    text = "seeds = [5, 6]\n" + GOOD + RUN + 'seed = 7\nname = "one"\n' + RUN + 'seeds = [8, 9]\nname = "two"\n'
    runs = load(tmp_path, text).runs
    assert [(run.name, run.config.seed) for run in runs] == [
        ("rnn-sgd-seed5", 5),
        ("rnn-sgd-seed6", 6),
        ("one", 7),
        ("two-seed8", 8),
        ("two-seed9", 9),
    ]


def test_defaults_hold_where_they_apply_and_are_left_out_elsewhere(tmp_path: Path) -> None:
    text = (
        HEAD + "[defaults]\nmodel.hidden_size = 8\nmodel.num_heads = 2\nmodel.embedding_size = 5\noptim.decay = 3.0\n"
    )
    text += 'data.corpus = "pydoc"\noptim.lr = 1\n[[grid]]\nmodel.arch = ["rnn", "transformer"]\n'
    text += 'optim.optimizer = ["adam", "sgd_schedule"]\n'
    rnn, _, _, transformer = (run.config.to_dict() for run in load(tmp_path, text).runs)
    assert rnn["model"]["embedding_size"] == 5
    assert "num_heads" not in rnn["model"]
    assert "decay" not in rnn["optim"]
    assert transformer["model"]["num_heads"] == 2
    assert transformer["optim"]["decay"] == 3.0


def optims(tmp_path: Path, entries: str, *overrides: str) -> list[dict[str, Any]]:
    text = HEAD + "[defaults]\nmodel.arch = 'gru'\nmodel.hidden_size = 8\noptim.lr = 1\n" + entries
    return [run.config.to_dict()["optim"] for run in load(tmp_path, text, *overrides).runs]


def test_a_published_schedule_among_the_defaults_is_that_of_its_optimizer_and_others_are_of_the_others(
    tmp_path: Path,
) -> None:
    runs = '[[grid]]\noptim.optimizer = ["adam", "sgd", "sgd_schedule", "adamw"]\n'
    published = optims(tmp_path, 'optim.schedule = "per_epoch"\noptim.flat_epochs = 4\n' + runs)
    assert [optim["schedule"] for optim in published] == ["constant", "constant", "per_epoch", "constant"]
    assert [optim.get("flat_epochs") for optim in published] == [None, None, 4, None]
    cosine = optims(tmp_path, 'optim.schedule = "cosine"\noptim.decay_epochs = 40\noptim.decay = 2\n' + runs)
    assert [optim["schedule"] for optim in cosine] == ["cosine", "cosine", "compounding", "cosine"]
    assert [optim.get("decay_epochs") for optim in cosine] == [40, 40, None, 40]
    assert [optim.get("decay") for optim in cosine] == [None, None, 2.0, None]


def test_set_gives_a_schedule_to_the_optimizers_that_it_is_for(tmp_path: Path) -> None:
    entries = (
        '[[run]]\nname = "a"\noptim.optimizer = "adam"\noptim.schedule = "linear"\noptim.decay_epochs = 50\n'
        '[[run]]\nname = "b"\noptim.optimizer = "sgd_schedule"\n'
    )
    found = optims(tmp_path, entries, "optim.schedule=per_epoch", "optim.decay=3")
    assert [optim["schedule"] for optim in found] == ["linear", "per_epoch"]
    assert [optim.get("decay") for optim in found] == [None, 3.0]


def test_any_optimizer_takes_any_schedule_in_its_own_entry(tmp_path: Path) -> None:
    entries = (
        '[[grid]]\noptim.optimizer = ["adam", "adamw"]\noptim.schedule = ["per_epoch", "compounding"]\n'
        "optim.flat_epochs = 2\n"
    )
    found = optims(tmp_path, "optim.decay = 1.5\n" + entries)
    assert [(optim["schedule"], optim["decay"], optim["flat_epochs"]) for optim in found] == [
        ("per_epoch", 1.5, 2),
        ("compounding", 1.5, 2),
    ] * 2


def test_an_exclude_drops_the_runs_that_match_all_its_keys(tmp_path: Path) -> None:
    grid = '[[grid]]\nmodel.arch = ["rnn", "gru", "transformer"]\noptim.optimizer = ["sgd", "adam"]\n'
    text = BASE + grid + '[[exclude]]\nmodel.arch = ["gru", "transformer"]\noptim.optimizer = "adam"\n'
    manifest = load(tmp_path, text)
    assert names_of_excluded(manifest) == ("gru-adam", "transformer-adam")
    assert names(manifest) == ["rnn-sgd", "rnn-adam", "gru-sgd", "transformer-sgd"]
    assert [run.order for run in manifest.runs] == [0, 1, 2, 3]


def test_an_exclude_may_drop_combinations_that_would_be_invalid(tmp_path: Path) -> None:
    grid = '[[grid]]\nmodel.arch = "transformer"\nmodel.hidden_size = [6, 8]\nmodel.num_heads = [3, 4]\n'
    grid += 'optim.optimizer = "sgd"\n'
    cuts = "[[exclude]]\nmodel = { hidden_size = 8, num_heads = 3 }\n[[exclude]]\nname = '*-hidden6-heads4'\n"
    assert names(load(tmp_path, BASE + grid + cuts)) == [
        "transformer-sgd-hidden6-heads3",
        "transformer-sgd-hidden8-heads4",
    ]


def test_an_exclude_sees_the_defaults_of_the_configuration_too(tmp_path: Path) -> None:
    text = GOOD + RUN + "train.epochs = 3\nname = 'short'\n[[exclude]]\ntrain.epochs = 40\nseed = 1111\n"
    assert names(load(tmp_path, text)) == ["short"]


def test_resources_of_an_entry_go_before_those_of_the_manifest(tmp_path: Path) -> None:
    text = GOOD + RUN + "name = 'two'\nseed = 1\nresources.ranks = 2\n[resources]\nranks = 4\ncpus = 3\n"
    assert [(run.resources.ranks, run.resources.cpus) for run in load(tmp_path, text).runs] == [(4, 3), (2, 3)]
    zipped = BASE + '[[zip]]\nmodel.arch = ["rnn", "gru"]\noptim.optimizer = "sgd"\nresources.ranks = [1, 2]\n'
    assert [(run.name, run.resources.ranks) for run in load(tmp_path, zipped).runs] == [("rnn-sgd", 1), ("gru-sgd", 2)]


def test_backend_tables_are_handed_on_as_written(tmp_path: Path) -> None:
    text = GOOD + '[backend.slurm]\npartition = "gpu"\nsbatch.gres = "nvme:1"\n[backend.local]\nmax_parallel = 2\n'
    assert load(tmp_path, text).backend == {
        "slurm": {"partition": "gpu", "sbatch": {"gres": "nvme:1"}},
        "local": {"max_parallel": 2},
    }


def test_the_backend_of_the_study_and_its_settings_are_read(tmp_path: Path) -> None:
    text = GOOD.replace('name = "s"', 'name = "s"\nbackend = "ray"')
    table = {"address": "auto", "max_parallel": 3, "retries": 0, "env": {"NCCL_SOCKET_IFNAME": "eth0"}}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items() if key != "env")
    manifest = load(tmp_path, f'{text}[backend.ray]\n{lines}env.NCCL_SOCKET_IFNAME = "eth0"\n')
    assert manifest.backend_name == "ray"
    assert manifest.backend == {"ray": table}
    assert load(tmp_path, GOOD).backend_name is None


def test_a_run_may_have_a_share_of_a_gpu_and_a_priority(tmp_path: Path) -> None:
    text = GOOD + "resources.gpus = 0.25\nresources.priority = -1\n[resources]\npriority = 2\n"
    (run,) = load(tmp_path, text).runs
    assert (run.resources.gpus, run.resources.priority) == (0.25, -1)
    (again,) = load(tmp_path, text, "resources.gpus=1").runs
    assert again.resources.gpus == 1


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_manifest(path).study == "s"


# -- the lines for wrong ones --------------------------------------------------------------------------------------

GRID = '[[grid]]\nmodel.arch = ["rnn", "gru", "transformer"]\noptim.optimizer = ["sgd", "adam"]\n'


def test_a_file_that_cannot_be_read_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes("é".encode("latin-1"))
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "study.yaml").write_text("study: {name: s}")
    expected = {
        "absent.toml": "absent.toml: no such file",
        "latin.toml": "latin.toml: not UTF-8 text (byte 0)",
        "folder.toml": "folder.toml: expected a manifest (.toml), got a folder",
        "study.yaml": "study.yaml: not TOML: Expected '=' after a key in a key/value pair (at line 1, column 6)",
        "a\nb.toml": "a\\nb.toml: no such file",
    }
    for name, line in expected.items():
        with pytest.raises(ManifestError) as caught:
            load_manifest(tmp_path / name)
        assert caught.value.problems == [f"{tmp_path}/{line}"]
    with pytest.raises(ManifestError, match="got a folder"):
        load_manifest(tmp_path)
    with pytest.raises(ManifestError, match="embedded null"):
        load_manifest(tmp_path / "a\0.toml")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("good", 'good: no such file; did you mean "{folder}/good.toml"?'),
        ("good.tml", 'good.tml: no such file; did you mean "{folder}/good.toml"?'),
        ("god.toml", 'god.toml: no such file; did you mean "{folder}/good.toml"?'),
        ("other.toml", "other.toml: no such file"),
        ("nowhere/good.toml", "nowhere/good.toml: no such file"),
    ],
)
def test_a_missing_manifest_is_named_with_the_nearest_one(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / "good.toml").write_text(GOOD)
    (tmp_path / "god.txt").write_text("")
    with pytest.raises(ManifestError) as caught:
        load_manifest(tmp_path / name)
    assert caught.value.problems == [f"{tmp_path}/{line.format(folder=tmp_path)}"]


# -- --set ---------------------------------------------------------------------------------------------------------


def test_set_changes_every_run(tmp_path: Path) -> None:
    overrides = ("train.epochs=2", "optim.lr = 1e-4", "seed=3", "resources.ranks=2", "study.name=x", "data.level=char")
    manifest = load(tmp_path, BASE + "train.epochs = 7\n" + GRID, *overrides)
    assert manifest.study == "x"
    for run in manifest.runs:
        config = run.config
        assert (config.train.epochs, config.optim.lr, config.seed, config.data.level) == (2, 1e-4, 3, "char")
        assert run.resources.ranks == 2


def test_of_two_sets_of_one_key_the_later_holds(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD, "seed=3", "seed=4").runs[0].config.seed == 4


def test_set_is_left_out_for_runs_to_which_it_does_not_apply(tmp_path: Path) -> None:
    configs = [run.config.to_dict()["model"] for run in load(tmp_path, BASE + GRID, "model.mlp_size=16").runs]
    assert [model.get("mlp_size") for model in configs] == [None, None, None, None, 16, 16]


def test_the_name_of_a_run_has_no_key_that_set_left_out(tmp_path: Path) -> None:
    text = BASE + '\n[[zip]]\nmodel.arch = ["rnn", "transformer"]\noptim.optimizer = "sgd"\nmodel.mlp_size = [8, 16]\n'
    assert names(load(tmp_path, text, "model.mlp_size=4")) == ["rnn-sgd", "transformer-sgd-mlp4"]


def test_excludes_hold_as_written_whatever_is_set(tmp_path: Path) -> None:
    text = BASE + GRID + '[[exclude]]\nmodel.arch = "gru"\noptim.lr = 1.0\n'
    manifest = load(tmp_path, text, "optim.lr=2")
    assert names_of_excluded(manifest) == ("gru-sgd", "gru-adam")
    assert len(manifest.runs) == 4


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("optim.learning_rate", '"optim.lr"'),
        ("learning_rate", '"optim.lr"'),
        ("train.num_epochs", '"train.epochs"'),
        ("train.bptt", '"train.seq_len"'),
        ("model.dropout", '"model.keep" = 1 - dropout'),
        ("model.n_layers", '"model.num_layers"'),
        ("optim.wd", '"optim.weight_decay"'),
    ],
)
def test_the_word_of_another_tool_gets_the_key_that_it_means(tmp_path: Path, word: str, meant: str) -> None:
    written = problems(tmp_path, f"{GOOD}{word} = 1")
    by_flag = problems(tmp_path, GOOD, f"{word}=1")
    with pytest.raises(UsageError) as filtered:
        select(load(tmp_path, GOOD).runs, [f"{word}=1"], [], facts_of_spec)
    for lines in (written, by_flag, [str(filtered.value)]):
        assert f"did you mean {meant}?" in lines[0]


def test_every_word_of_another_tool_means_a_key_of_ours() -> None:
    for key in OTHER_WORDS:
        assert same_key(key.partition(" ")[0], [*SET_KEYS, "sample.count", "--max-parallel"])[0], key


@pytest.mark.parametrize(
    ("key", "meant"),
    [("batch_size", "train.batch_size"), ("max_steps", "train.epochs"), ("retries", "policy.max_stalled_retries")],
)
def test_a_key_without_its_table_is_the_one_that_most_mean(key: str, meant: str) -> None:
    assert same_key(key, SET_KEYS)[0] == meant


def test_a_file_that_is_too_large_or_refused_by_the_disk_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.manifests.reader.MAX_BYTES", 2**20)
    load(tmp_path, GOOD + "#" * (2**20 - len(GOOD)))
    path = tmp_path / "study.toml"
    expected = "study.toml: too large, expected at most 1 MiB"
    assert problems(tmp_path, GOOD + "#" * (2**20 - len(GOOD) + 1)) == [expected]

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    assert caught.value.problems == [f"{path}: cannot be read: Permission denied"]
