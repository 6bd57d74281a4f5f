"""The manifest: what a right one expands to. ``python -m tests.jobs.manifests.test_manifest`` writes expansions.txt."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

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


def test_a_problem_names_the_file_as_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for text in (BASE + "x = 1\n", "x"):
        (tmp_path / "sub" / "study.toml").write_text(text)
        with pytest.raises(ManifestError) as caught:
            load_manifest(Path("sub/study.toml"))
        assert all(line.startswith("sub/study.toml: ") for line in caught.value.problems)


EXPANSIONS = Path(__file__).with_name("expansions.txt")
BLOCKS = EXPANSIONS.read_text("utf-8").strip().split("\n\n")


def expanded(folder: Path, block: str) -> str:
    """Return a block of ``expansions.txt`` with its runs, the keys to be shown, and what is there for the report."""
    lines = [line for line in block.splitlines() if not line.startswith(("=> ", "excluded: "))]
    found: dict[str, list[str]] = {kind: [] for kind in ("# ", "show: ", "before: ", "--set ", "")}
    for line in lines:
        kind = next(kind for kind in found if line.startswith(kind))
        found[kind].append(line.removeprefix(kind))
    manifest = load(folder, "\n".join([*found["before: "], BASE, *found[""]]), *found["--set "])
    shown = found["show: "][0].split()
    for run in manifest.runs:
        values = {**facts_of_spec(run), "order": run.order}
        lines.append(" ".join([f"=> {run.name}:", *(f"{values.get(key, '-')}" for key in shown)]))
    lines += [f"excluded: {name}" for name in names_of_excluded(manifest)]
    lines += [f"=> {manifest.search}"] * (manifest.search is not None)
    for claim in manifest.expectations:
        lines.append(f"=> expect {json.dumps(claim)}")
    published = {name: asdict(one) for name, one in manifest.published.items()}
    for kind in (manifest.groups, published, manifest.notes):
        lines += [f"=> {name}: {json.dumps(value)}" for name, value in kind.items()]
    return "\n".join([*lines, *(f"=> behaviour of {name}" for name in manifest.behaviour)])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.partition("\n")[0].strip("# "))
def test_what_entries_expand_to(tmp_path: Path, block: str) -> None:
    assert "=> " in block
    assert expanded(tmp_path, block) == block


def test_published_results_change_nothing_about_a_run(tmp_path: Path) -> None:
    plain, published = (load(tmp_path, GOOD + text).runs for text in ("", "published.val_ppl = 156.5\n"))
    assert [run.fingerprint for run in plain] == [run.fingerprint for run in published]


def test_a_byte_order_mark_and_windows_line_ends_are_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_manifest(path).study == "s"


def test_a_file_that_cannot_be_read_gets_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes("é".encode("latin-1"))
    (tmp_path / "folder.toml").mkdir()
    expected = {
        "absent.toml": "absent.toml: no such file",
        "latin.toml": "latin.toml: not UTF-8 text (byte 0)",
        "folder.toml": "folder.toml: expected a manifest (.toml), got a folder",
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
    ("text", "shown", "marked"),
    [
        ("study: {name: s}", "study: {name: s}", ":"),
        ("[study]\nname = 'a'\nseeds = [1, 2\n\n[policy]\n", "[policy]", "["),
        ('a = 1\nb =\t"é" x\n', 'b = "é" x', "x"),
        (f"b = [{'1, ' * 100}x]\n", f"{'1, ' * 100}x]"[-40:], "x"),
        ("a = 1\nb = '", "b = '", ""),
    ],
)
def test_an_error_of_toml_has_its_line_and_marks_its_place(tmp_path: Path, text: str, shown: str, marked: str) -> None:
    (tmp_path / "study.toml").write_text(text)
    with pytest.raises(ManifestError) as caught:
        load_manifest(tmp_path / "study.toml")
    (problem,) = caught.value.problems
    what, line, mark = problem.split("\n")
    assert what.startswith(f"{tmp_path / 'study.toml'}: not TOML: ")
    assert shown in line
    assert line[mark.index("^") :][:1] == marked
    assert max(map(len, (line, mark))) <= 100


@pytest.mark.parametrize("key", ["notify.command", "backend.slurm.timeout_min", "report.title", "study.data"])
def test_a_key_that_no_set_can_change_is_said_to_belong_in_its_table(tmp_path: Path, key: str) -> None:
    (line,) = problems(tmp_path, GOOD, f"{key}=5")
    table, _, name = key.rpartition(".")
    assert "did you mean" not in line
    assert f"[{table}]" in line
    assert f"{name} = " in line
    assert "study.toml" in line


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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        EXPANSIONS.write_text("\n\n".join(expanded(Path(name), block) for block in BLOCKS) + "\n", "utf-8")
