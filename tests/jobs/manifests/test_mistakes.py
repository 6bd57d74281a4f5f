"""Each mistake in a manifest gets one line that names the file, the place, the key and what is valid.

Single keys by generated mistakes: every key of a manifest that has them all, misspelt, missing, and with values that
the JSON Schema, which pydantic makes, refuses. Mistakes across keys by whole sentences in ``mistakes.txt``, which
``python -m tests.jobs.manifests.test_mistakes`` writes again.
"""

import copy
import json
import random
import re
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from jobs.manifests.claims import Claim, Published, Report
from jobs.manifests.entries import SET_KEYS, SampleTable, StudyTable
from jobs.manifests.json_schema import manifest_schema
from jobs.manifests.load import load_manifest
from jobs.manifests.reader import table_of
from jobs.registry import BACKENDS
from seqlm.errors import ManifestError
from seqlm.schema import fields_of, show
from tests.seqlm.check_model.faulty import write_model

VALIDATOR = Draft202012Validator(manifest_schema())
TRAIN = {"epochs": 30, "batch_size": 20, "seq_len": 35, "clip_norm": 0.25, "precision": "fp32"}
OPTIM = {"lr": 0.5, "schedule": "per_epoch", "decay": 2.0, "flat_epochs": 3, "warmup_steps": 5, "weight_decay": 0.1}
EVERY_KEY: dict[str, Any] = {
    "seeds": [5],
    "study": {"name": "s", "data": "texts", "backend": "local"},
    "defaults": {"data": {"corpus": "pydoc", "level": "word", "vocab_size": 100}, "train": TRAIN},
    "resources": {"ranks": 2, "cpus": 3, "gpus": 1, "priority": -1, "gpu_memory_gb": 20, "accelerator_type": "A100"},
    "policy": {
        **{
            "checkpoint_min": 5,
            "oom": 1,
            "timeout": 2,
            "node": 3,
            "preempted": "unlimited",
            "start": 1,
            "keep_last": False,
            "keep_epochs": [1, 20],
        },
        **{"max_stalled_retries": 4, "gpu_hours": 2.5, "core_hours": 7},
    },
    "notify": {"command": "mail -s seqlm me@example.org", "on": ["over", "failed"]},
    "search": {
        "rungs": [3, 9],
        "metric": "val_loss",
        "keep": 0.5,
        "min_runs": 2,
        "within": ["model.arch"],
        "final_seeds": 2,
    },
    "report": {"behaviour": ["rnn"], "groups": {"all": ["*"]}, "notes": {"cost": "Cheap."}},
    "expect": [
        {
            "text": "wide helps",
            "metric": "gap",
            "lower": "name=rnn",
            "higher": "arch=gru",
            "why": "more room",
            "otherwise": "it overfits",
        }
    ],
    "exclude": [{"name": "grid-hidden16*", "seed": 2}],
    "run": [
        {
            **{"name": "rnn", "seed": 1, "resources": {"ranks": 1, "gpus": 0.25}},
            "eval": {"batch_size": 10, "seq_len": 20},
            "model": {
                **{"arch": "rnn", "hidden_size": 8, "num_layers": 1, "embedding_size": 8, "keep": 0.5, "tied": True},
                **{"embedding_keep": 0.9, "weight_keep": 0.8},
            },
            "optim": {"optimizer": "sgd", "momentum": 0.5, "nesterov": True, **OPTIM},
            "published": {"train_ppl": 120, "val_ppl": 150.5, "replications": [150, 157.5], "epochs": 20},
        },
        {
            **{"name": "own", "seed": 1, "optim": {"optimizer": "adam", "lr": 0.001, "beta1": 0.8, "beta2": 0.9}},
            "model": {"arch": "custom", "source": "model.py:Model", "arguments": {"hidden_size": 4}, "files": ["a.py"]},
        },
    ],
    "grid": [
        {
            **{"name": "grid", "seeds": [2], "model": {"arch": ["gru"], "hidden_size": [8, 16]}},
            "optim": {"optimizer": "adamw", "lr": 0.1, "schedule": "cosine", "decay_epochs": 40, "weight_decay": 0.0},
        }
    ],
    "zip": [
        {
            "model": {
                **{"arch": "transformer", "hidden_size": [8, 16], "num_layers": 1, "num_heads": 2, "mlp_size": [4, 8]},
                **{"keep": 0.9, "attention_keep": 0.8},
            },
            "optim": {"optimizer": "sgd", "lr": 1},
        }
    ],
    "sample": [
        {
            **{
                "name": "drawn",
                "count": 3,
                "seed": 5,
                "only": ["lr < 2"],
                "optim": {"optimizer": "adam", "lr": {"log_uniform": [0.1, 1]}},
            },
            "model": {"arch": "gru", "hidden_size": {"int": [8, 64], "step": 8}, "keep": {"uniform": [0.1, 0.9]}},
        }
    ],
    "backend": {
        "local": {
            "max_parallel": 2,
            "leave_gpus": 1,
            "retries": 1,
            "env": {"A": "b"},
            "env_pass": ["HOME"],
            "progress_s": 2.5,
        },
        "ray": {
            "address": "auto",
            "largest": {"nodes": 4, "cpus": 16.0, "gpus": 4, "accelerator_type": "A100", "gpu_memory_gb": 40.0},
        },
        "slurm": {
            **{"partition": "p", "account": "a", "qos": "q", "constraint": "c d", "reservation": "r", "nodelist": "n"},
            **{"exclude": "e", "timeout_min": 5, "signal_before_s": 9, "mem_gb": 1.5, "ranks_per_node": 2},
            **{"fit_limits": True, "stage": True, "pool": {"jobs": 4, "cpus": 32}, "gpu_request": "gres=gpu:a:{gpus}"},
            **{"setup": ["module load x"], "python": "python3 -u", "srun_args": ["--x"], "sbatch": {"gres": "x"}},
        },
    },
}
"""Every key of a manifest at least once, in each kind of entry."""
OPEN = ("env", "sbatch", "groups", "arguments")
"""Tables whose names are the user's."""
VALUES: tuple[Any, ...] = (
    *(True, 0, 1, -1, 3, 0.5, 2.5, 1e300, 10**20, "", " ", "1", "word", "a b", "a\nb", "\x1b[2J"),
    *("x" * 400, "../x", [], [1], [2, 1], [1, "a"], [""], ["a", "a"], [[]], {}, {"a": 1}, {"uniform": [1, 2]}),
)


def toml(value: Any) -> str:
    """Return plain data as TOML in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        write_model(Path(path))
        (Path(path) / "a.py").write_text("")
        yield Path(path)


def problems(folder: Path, data: Mapping[str, Any] | str, *overrides: str) -> list[str]:
    """Return the lines that a manifest gets; none if it is right."""
    text = data if isinstance(data, str) else "".join(f"{key} = {toml(one)}\n" for key, one in data.items())
    (folder / "study.toml").write_text(text, "utf-8")
    try:
        load_manifest(folder / "study.toml", overrides)
    except ManifestError as error:
        return [line.replace(f"{folder}/", "") for line in error.problems]
    return []


Key = tuple[str | int, ...]


def keys_of(data: Any, path: Key = ()) -> Iterator[Key]:
    """Yield the path of each key of a manifest that is not the user's own name."""
    if isinstance(data, Mapping):
        for name, value in data.items():
            yield (*path, name)
            is_drawn = {"int", "uniform", "log_uniform"} & set(value if isinstance(value, Mapping) else ())
            if name not in (*OPEN, "notes") and not is_drawn:
                yield from keys_of(value, (*path, name))
    elif isinstance(data, list) and all(isinstance(item, Mapping) for item in data):
        for number, item in enumerate(data):
            yield from keys_of(item, (*path, number))


def distinct(keys: Iterable[Key]) -> Iterator[Key]:
    """Yield the first key of each name, and of each kind of entry."""
    seen = set[object]()
    for key in keys:
        if not {key[0], key[-1]} <= seen:
            yield key
        seen |= {key[0], key[-1]}


KEYS = list(distinct(keys_of(EVERY_KEY)))
SINGLE = [key for key in KEYS if key[-1] not in ("groups", "notes", *EVERY_KEY) or key[0] == "seeds"]


def changed(key: Key, value: Any, name: str | None = None) -> dict[str, Any]:
    """Return the manifest with another value at a key, ``...`` for none; or with another name for the key."""
    data = copy.deepcopy(EVERY_KEY)
    table: Any = data
    for part in key[:-1]:
        table = table[part]
    if value is ...:
        del table[key[-1]]
    elif name is None:
        table[key[-1]] = value
    else:
        table[name] = table.pop(key[-1])
    return data


def place_of(key: Key) -> tuple[str, str]:
    """Return how messages name the place of a key, and the key in full."""
    kind, *rest = key
    if rest and isinstance(rest[0], int):
        entry = EVERY_KEY[str(kind)][rest[0]]
        named = f'"{entry["name"]}"' if "name" in entry and kind not in ("exclude", "expect") else rest[0] + 1
        return f"study.toml: {kind} {named}: ", ".".join(map(str, rest[1:]))
    if kind == "defaults":
        return "study.toml: defaults: ", ".".join(map(str, rest))
    return "study.toml: ", ".".join(map(str, key))


def at(key: Key) -> Any:
    found: Any = EVERY_KEY
    for part in key:
        found = found[part]
    return found


def test_the_manifest_has_every_key_and_is_right(folder: Path) -> None:
    assert problems(folder, EVERY_KEY) == []
    assert [error.message for error in VALIDATOR.iter_errors(EVERY_KEY)] == []
    names = {str(key[-1]) for key in KEYS}
    assert {key.rpartition(".")[2] for key in SET_KEYS} - names == {"column", "tokenizer", "sha256", "tokenizer_sha256"}
    for kind in (StudyTable, SampleTable, Published, Claim, Report, *map(table_of, BACKENDS)):
        assert fields_of(kind).keys() - names == set()


# -- one key -----------------------------------------------------------------------------------------------------------

FOLLOWS = re.compile(
    r": missing, expected |: applies to |matches no run|lists of one length|several ranks|a multiple|with tied|with it,"
    r"|got neither"
)
"""Lines that follow from another mistake: without that key, others do not hold."""


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_misspelt_key_gets_the_nearest_one(folder: Path, key: Key) -> None:
    name = str(key[-1])
    wrong = name[:2] + name[1:]
    where, full = place_of(key)
    if name == "name" and isinstance(key[1], int):
        where = f"study.toml: {key[0]} {key[1] + 1}: "
    where, full = ("study.toml: ", name) if len(key) == 1 else (where, full)
    first, *others = sorted(problems(folder, changed(key, None, wrong)), key=lambda line: "unknown key" not in line)
    assert first.startswith(f'{where}unknown key "{full.removesuffix(name)}{wrong}"; did you mean "{full}"? (valid'), (
        first
    )
    assert [line for line in others if not FOLLOWS.search(line)] == []


REQUIRED: list[Key] = [
    *(("study",), ("study", "name"), ("search", "rungs"), ("sample", 0, "count"), ("run", 1, "model", "source")),
    *(
        ("run", 0, *key)
        for key in (("model", "arch"), ("model", "hidden_size"), ("optim", "optimizer"), ("optim", "lr"))
    ),
    *(("expect", 0, key) for key in ("text", "lower", "higher")),
]


@pytest.mark.parametrize("key", REQUIRED, ids=str)
def test_a_missing_key_is_named_with_what_is_valid(folder: Path, key: Key) -> None:
    where, full = place_of(key)
    first, *others = problems(folder, changed(key, ...))
    assert first.startswith(f"{where}{'study.name' if full == 'study' else full}: missing, expected ")
    assert [line for line in others if not FOLLOWS.search(line)] == []


def schema_of(key: Key) -> Any:
    """Return the schema of the values of a key."""
    found: Any = VALIDATOR.schema
    for part in key:
        found = found["items"] if isinstance(part, int) else found["properties"][part]
    return {**found, "$defs": VALIDATOR.schema["$defs"]}


@pytest.mark.parametrize("key", SINGLE, ids=str)
def test_a_value_that_the_schema_refuses_gets_one_line(folder: Path, key: Key) -> None:
    where, full = place_of(key)
    schema = Draft202012Validator(schema_of(key))
    wrong = [value for value in VALUES if not schema.is_valid(value)]
    for value in random.Random(str(key)).sample(wrong, min(3, len(wrong))):
        lines = problems(folder, changed(key, value))
        first, *others = sorted(lines, key=lambda line: (FOLLOWS.search(line) is not None, full not in line))
        assert full in first, (value, first)
        assert first.startswith(where) or key[-1] == "name", (value, first)
        shown = any(text in first for text in shown_in(value))
        assert (": expected " in first and shown) or re.search("unknown key|matches no run", first), (value, first)
        assert first.isprintable()
        assert [line for line in others if not FOLLOWS.search(line) and full not in line] == [], value


def shown_in(value: Any) -> Iterator[str]:
    """Yield how messages may show a value: whole, or its items."""
    yield show(value)
    for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        yield from shown_in(item)
    if value == []:
        yield "an empty list"
    if isinstance(value, dict):
        yield from map(show, value)


LIMITS = r"""
train.epochs : 0 | 1000001 : 10 | 40
train.batch_size : 0 : 2
train.clip_norm : 0 | ~inf | ~nan : 1e-9
data.vocab_size : 2 : 3
data.level : "words" : "char"
policy.checkpoint_min : 0 | ~inf | ~nan : 0.01
policy.oom : -1 | "often" : 0 | "unlimited"
policy.gpu_hours : 0 | "1" | ~nan : 0.1 | "unlimited"
policy.max_stalled_retries : -1 | "unlimited" : 0
policy.keep_last : 0 | "no" : true
policy.keep_epochs : [0] | 3 : [1, 20]
notify.command : "" | 3 : "mail me"
notify.on : "over" | ["ovre"] : ["stalled"]
search.keep : 0 | 1 | ~nan : 0.01 | 0.99
search.min_runs : 0 : 1
search.rungs : [] | [0, 3] | ~[9, 3] | [3, 3] | ~[3, 30] | ~[1.0] : [1] | [3, 29]
search.within : ["model.arhc"] | "seed" : ["seed"]
resources.ranks : 0 | ~21 : 1
resources.cpus : 0 : 1
resources.gpus : -0.1 | 1.1 : 1
resources.gpu_memory_gb : 0 : 0.5
resources.accelerator_type : "" | 3 : "A100" | "RTX 3090"
study.name : "" | ".s" | "a/b" | "$(x)" : "a-b.c_d"
study.backend : "cloud" : "slurm"
seeds : [] | [-1] | [4294967296] | [true] : [0] | [4294967295]
report.behaviour : ~["rn"] | ["rnn", "rnn"] : ["rnn", "own"]
report.groups : ~{g = ["rn"]} | {" " = ["rnn"]} | {g = []} : {g = ["rn*"]}
report.notes : {cots = "x"} | {cost = ""} : {cost = "x"}
backend.local.max_parallel : 0 : 1
backend.local.retries : -1 : 0
backend.local.progress_s : 0 | ~inf : 0.1
backend.local.env : {"a b" = "c"} | ~{A = "\u0000"} | {A = 1} : {A = ""}
backend.local.env_pass : ["a b"] : ["A_1"]
backend.ray.address : "" : "auto"
backend.slurm.partition : "a b" | "" : "a,b"
backend.slurm.constraint : " " | "a\nb" : "a b"
backend.slurm.signal_before_s : 0 | 65536 : 65535
backend.slurm.mem_gb : 0 : 0.5
backend.slurm.gpu_request : "gres=gpu:a100" | "--gres=gpu:{gpus}" | "gres=gpu:{}:{gpus}" : "gpus-per-node=a100:{gpus}"
backend.slurm.setup : ~["#SBATCH x"] | [""] : ["x y"]
backend.slurm.sbatch : {gpus = 1} | ~{part = "x"} | {"a b" = 1} | ~{nice = 0.5} | {x = false} : {nice = 1, x = true}
backend.slurm.sbatch : {"--hold" = true} | ~{comment = "a\n#SBATCH"} : {hold = true}
backend.slurm.sbatch : ~{core_spec = 1, "core-spec" = 1} | ~{job_n = "x"} | ~{nice = "7"} : {core_spec = 1}
run.0.model.num_layers : 0 : 1
run.0.model.keep : 0 | 1.01 : 1
run.0.model.tied : 1 : false
run.0.optim.lr : 0 | ~nan | -1 : 1e-9
run.0.optim.decay : 1 | ~inf : 1.01
run.0.optim.flat_epochs : 0 : 1
run.0.optim.warmup_steps : -1 | 0.5 : 0
run.0.optim.weight_decay : -0.1 : 0
run.0.optim.momentum : 1 | -0.1 : 0.99
run.0.published.val_ppl : 0 | ~inf | true : 0.1
run.0.published.replications : ~[9, 8] | [9] | [1, 2, 3] | [0, 1] : [9, 9]
run.0.published.epochs : 0 : 1
run.0.seed : -1 | 4294967296 : 0 | 4294967295
run.1.optim.beta1 : 1 | -0.1 : 0 | 0.99
run.1.model.source : ~"model.py" | ~"../model.py:Model" | ~"absent.py:Model" : "model.py:Model"
run.1.model.arguments : ~{"a b" = 1} | {hidden_size = {a = 1}} : {hidden_size = [1]}
run.1.model.files : [""] | ~["../a.py"] | ~["b.py"] : []
zip.0.model.num_heads : 0 : 4
sample.0.count : 0 | 10001 : 2
sample.0.model.hidden_size : ~{int = [8, 8]} | {int = [8, 9.5]} | ~{int = [8, 16], step = 9} : {int = [8, 16]}
sample.0.model.hidden_size : ~{uniform = [8, 9]} : {int = [8, 16], step = 8}
sample.0.model.keep : ~{uniform = [0.9, 0.2]} | ~{uniform = [0.9, 0.9]} | {uniform = 0.5} | [] | [[1]] | {} : [0.5]
sample.0.model.keep : {uniform = [0.1, 0.9], step = 0.1} : {uniform = [0.1, 0.9]}
sample.0.optim.lr : {log_uniform = [0, 1]} | ~{uniform = [-2, -1]} : {uniform = [0.1, 1]}
sample.0.optim.lr : {uniform = [1, 2], log_uniform = [1, 2]} : {log_uniform = [1, 2]}
expect.0.metric : "val_pl" : "val_ppl"
expect.0.lower : ~"rnn" | ~"arch>1" | ~"name=x" | ~"name=*" | ~"state=done" : "name=rnn"
expect.0.text : "" | "a\nb" : "x"
exclude.0.name : ~"x*" : ["grid-hidden16-*"]
exclude.0.seed : true | ~3 : [2, 3]
"""
"""Key : values just beyond what is valid : values that are just valid. What only the loader can tell has a ``~``."""


@pytest.mark.parametrize("row", LIMITS.strip().splitlines(), ids=lambda row: row.partition(" ")[0])
def test_values_at_the_limits(folder: Path, row: str) -> None:
    name, wrong, right = row.split(" : ")
    key = tuple(int(part) if part.isdecimal() else part for part in name.split("."))
    key = ("defaults", *key) if key[0] in ("train", "data") else key
    where, full = place_of(key)
    schema = Draft202012Validator(schema_of(key))
    for text in wrong.split(" | "):
        value = tomllib.loads(f"x = {text.removeprefix('~')}")["x"]
        (line,) = problems(folder, changed(key, value))
        assert line.startswith(where) or key[-1] == "name", (text, line)
        assert full.partition(".")[0] in line, (text, line)
        assert schema.is_valid(value) == text.startswith("~"), text
    for text in right.split(" | "):
        value = tomllib.loads(f"x = {text}")["x"]
        lines = problems(folder, changed(key, value))
        assert not [line for line in lines if f"{full}: " in line or f"{full}." in line], text
        assert schema.is_valid(value), text


# -- mistakes across keys ----------------------------------------------------------------------------------------------

SENTENCES = Path(__file__).with_name("mistakes.txt")
BASE = """
[study]
name = "s"
[defaults]
model = { hidden_size = 8, num_heads = 2 }
optim = { optimizer = "sgd", lr = 1.0 }
"""
MARK = "=> "


def sentences_of(folder: Path, block: str) -> str:
    """Return a block with the lines that its manifest gets now."""
    lines = [line for line in block.splitlines() if not line.startswith(MARK)]
    overrides = [line.removeprefix("--set ") for line in lines if line.startswith("--set ")]
    text = "\n".join([BASE, *(line for line in lines if not line.startswith("--set "))])
    return "\n".join([*lines, *(f"{MARK}{line}" for line in problems(folder, text, *overrides))])


BLOCKS = SENTENCES.read_text("utf-8").strip().split("\n\n")


@pytest.mark.parametrize("block", BLOCKS, ids=range(1, len(BLOCKS) + 1))
def test_whole_sentences(folder: Path, block: str) -> None:
    assert MARK in block
    assert sentences_of(folder, block) == block


def test_a_key_that_is_missing_since_its_name_is_misspelt_is_no_second_mistake(folder: Path) -> None:
    base, entry = BASE.replace(", lr = 1.0", ""), '[[run]]\nmodel.arch = "rnn"\n'
    (line,) = problems(folder, f"{base}{entry}optim.lrate = 1\n")
    assert 'did you mean "optim.lr"?' in line
    (line,) = problems(folder, BASE.replace("lr = 1.0", "lrate = 1.0") + entry)
    assert 'did you mean "optim.lr"?' in line
    assert len(problems(folder, f"{base}{entry}optim.lrate = 1\n{entry}")) == 2, "of another run, it is"


def test_all_mistakes_are_told_at_once_however_many(folder: Path) -> None:
    both = [
        problems(folder, f"{BASE}{text}") for text in ("[[run]]\nlr = 3\n", "[[zip]]\nx = 3\n", "[policy]\noom = -1\n")
    ]
    together = problems(folder, BASE + "[[run]]\nlr = 3\n[[zip]]\nx = 3\n[policy]\noom = -1\n")
    assert {line for lines in both for line in lines if "no runs" not in line} <= set(together)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        SENTENCES.write_text("\n\n".join(sentences_of(Path(name), block) for block in BLOCKS) + "\n", "utf-8")
