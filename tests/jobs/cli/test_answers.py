"""The documents of ``--json`` and what to do next: for scripts and agents, which read no prose."""

import contextlib
import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import launch
from jobs.cli.answers import problem_of
from jobs.cli.arguments import read
from jobs.cli.documents import SAME, schema_of, tables
from jobs.study.launched import record
from seqlm.files import write_json
from seqlm.rundir import RunDirectory
from tests.commands import run
from tests.facts import fail
from tests.jobs.cli.test_watch import add, running, trained

ROOT = Path(__file__).parents[3]
USAGE = ROOT / "tests" / "end_to_end" / "usage.txt"
ERRORS = [line for line in USAGE.read_text("utf-8").splitlines() if line.startswith("error: ")]
MISTAKES = ROOT / "tests" / "jobs" / "manifests" / "mistakes.txt"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    """Return exit code and document of a command; its stderr has warnings and errors alone."""
    capsys.readouterr()
    code = launch.main([*words, "--runs-dir", ".", "--json"])
    out, err = capsys.readouterr()
    assert all(line.startswith(("error: ", "warning: ")) for line in err.splitlines()), err
    return code, json.loads(out)


def commands(document: Any) -> list[list[str]]:
    """Return the words of each command of ``next``, without the program's name."""
    return [shlex.split(step["command"].removeprefix("python launch.py ")) for step in document["next"]]


@pytest.mark.parametrize("document", sorted({*tables(), *SAME} - {"Document"}))
def test_every_document_has_a_valid_schema(document: str) -> None:
    Draft202012Validator.check_schema(schema_of(document))


@pytest.mark.parametrize("words", [["status", "s"], ["why", "s"], ["wait", "s"], ["logs", "s"], ["list"]], ids=str)
def test_an_answer_is_as_its_schema_says_also_with_fewer_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    fail(add(tmp_path / "s", "one"), {"kind": "oom", "message": "it fails"})
    valid = Draft202012Validator(schema_of(words[0]))
    _, whole = answer(capsys, *words)
    valid.validate(whole)
    name = "study" if words == ["list"] else "name"
    _, document = answer(capsys, *words, "--fields", name)
    valid.validate(document)
    (items,) = (value for value in document["data"].values() if isinstance(value, list) and value)
    assert items == [{name: "s" if words == ["list"] else "one"}]


def test_an_unknown_field_is_refused_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.handler", lambda command: pytest.fail("it has begun"))
    code, document = answer(capsys, "status", "s", "--fields", "nmae")
    assert (code, document["error"]["problems"][0]["suggestion"]) == (2, "name")


def test_a_failure_that_a_retry_may_cure_is_retried_next_and_one_of_the_code_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(add(tmp_path / "s", "large"), {"kind": "oom", "message": "it fails"})
    code, document = answer(capsys, "status", "s")
    assert (code, document["error"], document["data"]["counts"]) == (0, None, {"failed": 1})
    assert commands(document)[0] == ["retry", "s", "--kind", "oom", "--runs-dir", "."]
    fail(add(tmp_path / "t", "wrong"), {"kind": "code", "message": "it fails"})
    assert commands(answer(capsys, "status", "t")[1])[0][:3] == ["why", "t", "wrong"]
    assert commands(answer(capsys, "why", "t")[1])[0][:3] == ["logs", "t", "wrong"]
    assert commands(answer(capsys, "logs", "t")[1]) == [], "only a person can go on"


def test_what_only_a_person_may_decide_is_never_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # other tests launch the same configurations
    fail(add(tmp_path / "s", "cancelled"), {"kind": "cancelled", "message": "by its user"})
    trained(add(tmp_path / "s", "interrupted", order=1), 1)
    write_json(tmp_path / "s" / "study.json", {"version": 3, "folder": str(tmp_path), "manifest": "s.toml"})
    (tmp_path / "s.toml").write_text("")
    _, document = answer(capsys, "status", "s")
    assert commands(document) == [], "not launched by this user"
    runs = [RunDirectory(path.parent) for path in (tmp_path / "s").glob("*/config.json")]
    record(tmp_path / "s", [run.read_config().fingerprint() for run in runs], print)
    assert commands(answer(capsys, "status", "s")[1]) == [["run", "s.toml", "--runs-dir", "."]]


def test_a_done_study_lacks_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = add(tmp_path / "s", "one")
    trained(run, 4)
    write_json(run.result_file, {"epochs": 4})
    assert commands(answer(capsys, "status", "s")[1]) == [["report", "s", "--runs-dir", "."]]
    (tmp_path / "s" / "report").mkdir()
    (tmp_path / "s" / "report" / "index.html").write_text("")
    assert commands(answer(capsys, "status", "s")[1]) == []


def test_wait_ends_after_its_time_or_when_every_run_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = add(tmp_path / "s", "one")
    with running(run):
        started = time.monotonic()
        code, document = answer(capsys, "wait", "s", "--for", "0.1")
        assert time.monotonic() - started < 5
    assert (code, document["ok"], document["data"]["is_over"], document["error"]["kind"]) == (
        4,
        False,
        False,
        "unfinished",
    )
    assert commands(document)[0][:3] == ["wait", "s", "--for"]
    code, document = answer(capsys, "wait", "s", "--for", "60")
    assert (code, document["data"]["is_over"]) == (0, True)


@pytest.mark.parametrize(
    "line",
    [line for line in USAGE.read_text("utf-8").splitlines() if line.startswith("error: ")],
    ids=lambda line: line[:60],
)
def test_the_parts_of_a_usage_error_are_those_of_its_line(line: str) -> None:
    found = problem_of(line)
    for name, word in (("suggestion", r'; did you mean "([^"]*)"'), ("got", r'unknown \w+ "([^"]*)"')):
        written = re.search(word, line)
        assert written is None or found[name] == written[1]


def test_every_mistake_in_a_manifest_has_its_key_and_what_is_expected_and_found() -> None:
    lines = [line[3:] for line in MISTAKES.read_text("utf-8").splitlines() if line.startswith("=> ")]
    unknown = [line for line in lines if 'unknown key "' in line]
    valued = [line for line in lines if re.search(r": [\w.]+: expected .*, got ", line)]
    assert unknown
    assert valued
    for line in unknown:
        assert f'unknown key "{problem_of(line)["key"]}"' in line
    for line in valued:
        found = problem_of(line)
        assert all(found[part] for part in ("key", "expected", "got")), line
        assert f"{found['key']}: expected {found['expected']}, got " in line


@pytest.mark.process
@pytest.mark.parametrize(
    ("written", "key"),
    [("[defaults.optim]\nlrate = 1", "lr = 1"), ("[defaults]\noptim.lrate = 1 # lrate", "optim.lr = 1 # lrate")],
)
def test_a_mistake_in_one_place_of_a_manifest_is_corrected_by_the_command_that_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], written: str, key: str
) -> None:
    run_of_it = '[[run]]\nmodel.arch = "rnn"\nmodel.hidden_size = 8\noptim.optimizer = "adam"'
    text = f'[study]\nname = "s"\n{written}\n{run_of_it}\n'
    (tmp_path / "s.toml").write_text(text)
    _, document = answer(capsys, "plan", "s.toml")
    edit, _, again = document["next"][0]["command"].partition(" && ")
    run(["sh", "-c", edit], check=True)
    assert key in (tmp_path / "s.toml").read_text().splitlines()
    assert (tmp_path / "s.toml.bak").read_text() == text
    assert again == "python launch.py plan s.toml --runs-dir ."


@pytest.mark.parametrize("key", ["a'; touch planted; '", "lr/;e touch planted;"])
def test_no_text_of_a_manifest_becomes_part_of_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    (tmp_path / "s.toml").write_text(f'[study]\nname = "s"\n[defaults.optim]\n{json.dumps(key)} = 1\n')
    code, document = answer(capsys, "plan", "s.toml")
    assert (code, document["next"]) == (2, [])


def test_an_output_that_cannot_be_written_is_an_error_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in (["list"], ["list", "--json"], ["--help"], ["status", "--help"]):
        with Path("/dev/full").open("w") as full, contextlib.redirect_stdout(full):
            assert launch.main(words) == 1
            assert capsys.readouterr().err == "error: cannot write the output: No space left on device\n"


def test_next_off_a_terminal_is_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fail(add(tmp_path / "s", "large"), {"kind": "oom", "message": "it fails"})
    assert launch.main(["status", "s", "--runs-dir", "."]) == 0
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("next: python launch.py retry s --kind oom")
    assert read(shlex.split(line)[3:]) is not None
