"""The checks of a user's own model: each fault is caught by the check that is about it, in words."""

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from seqlm.check_model import __main__
from seqlm.check_model.__main__ import answers
from seqlm.models import reference
from tests.seqlm.check_model.faulty import FAULTS, UNRECORDABLE, write_model
from tests.seqlm.check_model.zoo import sound, unsound

EXAMPLES = Path(__file__).parents[3] / "examples"
ZOO = Path(__file__).with_name("zoo")


def answer(folder: Path, source: str = "model.py:Model", **config: Any) -> dict[str, Any]:
    raw = {"arch": "custom", "source": source, **config}
    (found,) = answers([{"folder": str(folder), "config": raw, "vocab_size": 50, "seq_len": 9}])
    return found


def lines(found: dict[str, Any], level: str = "bad") -> list[str]:
    return [f"{one['subject']}: {one['text']}" for one in found["findings"] if one["level"] == level]


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "check", "line"), FAULTS.values(), ids=FAULTS.keys())
def test_each_fault_is_caught_by_its_check(
    tmp_path: Path, changes: list[tuple[str, str]], check: str, line: str
) -> None:
    write_model(tmp_path, *changes)
    found = lines(answer(tmp_path))
    assert any(one.startswith(f"{check}: {line}") for one in found), found
    assert "training draws" not in str(found)


def classes(module: ModuleType) -> list[str]:
    return [name for name, one in vars(module).items() if isinstance(one, type) and one.__module__ == module.__name__]


@pytest.mark.slow
@pytest.mark.parametrize("name", classes(sound))
def test_a_sound_model_passes(name: str) -> None:
    assert not lines(answer(ZOO, f"sound.py:{name}"))


CAUGHT_BY = {
    "Bidirectional": "causality",
    "UnmaskedAttention": "causality",
    "LookAheadConvolution": "causality",
    "BatchNormalised": "causality",
    "BatchFirst": "columns",
    "ChosenByExperts": "causality",
    "NormalisedOverTime": "causality",
    "CachedTensor": "evaluation",
    "WritesIntoItsState": "evaluation",
    "AlwaysDrops": "evaluation",
    "LeaksThroughLoss": "loss",
    "HalfLoss": "loss",
    "LossInBits": "loss",
    "LabelSmoothing": "loss",
    "OutputOffThePath": "hidden states",
    "TrainedStart": "shapes",
    "PositionsWithinWindow": "carried state",
    "GeneratesOtherwise": "carried state",
    "NoiseOfNumPy": "resume",
    "StaysBehind": "GPU recording",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", classes(unsound))
def test_an_unsound_model_is_refused(name: str) -> None:
    found = lines(answer(ZOO, f"unsound.py:{name}"))
    if name == "Recurrent":
        assert not found, "what the others are made of is sound"
    else:
        assert CAUGHT_BY[name] in {line.partition(":")[0] for line in found}, found


@pytest.mark.slow
@pytest.mark.parametrize("changes", UNRECORDABLE.values(), ids=UNRECORDABLE.keys())
def test_a_model_that_a_gpu_cannot_record_gets_a_note(tmp_path: Path, changes: list[tuple[str, str]]) -> None:
    write_model(tmp_path, *changes)
    found = answer(tmp_path)
    assert not lines(found)
    (note,) = lines(found, "note")
    assert note.startswith("GPU recording: ")
    assert "model.py line " in note or "the buffer steps" in note


@pytest.mark.slow
def test_a_regulariser_in_training_is_named(tmp_path: Path) -> None:
    assert [line.partition(":")[0] for line in lines(answer(ZOO, "sound.py:Regularised"), "note")] == ["loss"]


@pytest.mark.slow
def test_a_loss_that_would_not_be_used_is_named(tmp_path: Path) -> None:
    write_model(tmp_path, ("# init", "self.loss = nn.CrossEntropyLoss()"))
    found = answer(tmp_path)
    assert not lines(found)
    assert [line.partition(":")[0] for line in lines(found, "note")] == ["loss"]


DROPOUTS = {
    "module": ("self.drop = nn.Dropout(0.5)", "h = self.drop(h)"),
    "of seqlm": ("from seqlm.models.dropout import Dropout; self.drop = Dropout(0.5)", "h = self.drop(h)"),
    "function": (
        "from torch.nn.functional import dropout as drop; self.drop = drop",
        "h = self.drop(h, 0.5, self.training)",
    ),
    "of an LSTM": ("self.lstm = nn.LSTM(hidden_size, hidden_size, 2, dropout=0.5)", "h = self.lstm(h)[0]"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("init", "hidden"), DROPOUTS.values(), ids=DROPOUTS.keys())
def test_training_is_compared_without_dropout_alone(tmp_path: Path, init: str, hidden: str) -> None:
    """A sound model passes with any dropout; ``FAULTS`` has one with dropout that is wrong only in training."""
    write_model(tmp_path, ("# init", init), ("# hidden", hidden))
    found = answer(tmp_path)
    assert {one for one in lines(found) if not one.startswith("carried state")} == set()
    assert "in evaluation" not in str(found)


@pytest.mark.slow
def test_other_random_numbers_in_training_are_named(tmp_path: Path) -> None:
    write_model(tmp_path, ("# hidden", "h = h * (1 + torch.rand_like(h)) if self.training else h"))
    found = answer(tmp_path)
    assert not lines(found)
    assert [one.partition(":")[0] for one in lines(found, "ok") if "in evaluation: training draws" in one] == [
        "causality",
        "columns",
        "carried state",
        "micro-batches",
    ]


@pytest.mark.slow
def test_a_model_that_keeps_the_contract_passes_and_is_measured(tmp_path: Path) -> None:
    write_model(tmp_path)
    found = answer(tmp_path, arguments={"hidden_size": 6})
    assert not lines(found)
    assert not lines(found, "note")
    parameters = 50 * 6 + (12 * 6 + 6) + (6 * 50 + 50)
    assert found["sizes"]["parameters"] == parameters
    assert found["sizes"]["flops_per_token"] == 6 * (12 * 6 + 6 * 50)
    assert found["sizes"]["saved_bytes_per_column"] > 9 * 50 * 4, "the logits of a column, at least"


def test_models_that_differ_in_a_probability_are_tested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(
        tmp_path,
        ("hidden_size=8", "hidden_size=8, keep=0.5, keeps=None"),
        ("# init", "self.keep = keep; assert keep <= 1"),
        ("# hidden", "h = h.clone() if self.keep == 1 else nn.functional.dropout(h, 1 - self.keep, self.training)"),
    )
    tested = []

    def examine(subject: Any) -> dict[str, Any]:
        tested.append(dict(subject.config.arguments))
        return {}

    monkeypatch.setattr(__main__, "examine", examine)

    def request(**arguments: Any) -> dict[str, Any]:
        config = {"arch": "custom", "source": "model.py:Model", "arguments": arguments, "sha256": None}
        return {"folder": str(tmp_path), "config": config, "vocab_size": 50, "seq_len": 9}

    alike = [request(keep=keep) for keep in (0.25, 0.5, 0.75)]
    others = [request(keep=1.0), request(keep=0.5, hidden_size=9), request(keep=0.5, keeps="x"), request(keep=1.5)]
    found = list(answers([*alike, *others]))
    assert tested == [alike[0]["config"]["arguments"], *(other["config"]["arguments"] for other in others)]
    assert found[0] == found[1] == found[2]
    assert [one["sizes"] and one["sizes"]["parameters"] for one in found[2:]] == [986, 986, 1121, 986, None]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RNN", "GRU", "Transformer"])
def test_the_reference_is_a_model_of_ones_own(tmp_path: Path, name: str) -> None:
    shutil.copy(reference.__file__, tmp_path / "model.py")
    sizes = {"hidden_size": 8, **({"num_heads": 2, "mlp_size": 6} if name == "Transformer" else {"embedding_size": 4})}
    found = answer(tmp_path, f"model.py:{name}", arguments=sizes)
    assert {finding["level"] for finding in found["findings"]} == {"ok"}, found["findings"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "source", "config"),
    [
        (
            "lstm",
            "lstm.py:LSTM",
            {"arguments": {"hidden_size": 12, "tied": True, "embedding_keep": 0.9, "weight_keep": 0.8}},
        ),
        ("min_gru", "min_gru.py:MinGRU", {"arguments": {"hidden_size": 12, "num_layers": 1}, "files": ["causal.py"]}),
    ],
)
def test_the_examples_keep_the_contract(folder: str, source: str, config: dict[str, Any]) -> None:
    found = answer(EXAMPLES / folder, source, **config)
    assert not lines(found)


IMPORTS = "model.source: model.py does not import: "
BROKEN = [  # the text of model.py -> how the line begins
    (None, "model.source: {folder}/model.py does not exist"),
    ("def f(:\n", f"{IMPORTS}SyntaxError: invalid syntax (model.py l"),
    ("import torch\nx = torhc\n", f"{IMPORTS}NameError: name 'torhc' is not defined (model.py line 2)"),
    (
        "import cells_of_mine\n",
        f"{IMPORTS}ModuleNotFoundError: No module named 'cells_of_mine' (model.py line 1); model.files names the files",
    ),
    ("import torch\n", "model.source: model.py has no class Model; it has no subclass of torch.nn.Module"),
    (
        "from torch import nn\nclass GRU(nn.Linear): pass\nclass Cell(nn.Linear): pass\nclass Other: pass\n",
        "model.source: model.py has no class Model; it has GRU, Cell",
    ),
    ("class Model: pass\n", "model.source: model.py has not a subclass of torch.nn.Module: Model"),
    ("print('hello')\n", 'model.source: model.py prints "hello" when it is imported; remove the'),
    pytest.param(
        "import os\nif not os.fork(): os._exit(0)\n",
        f"{IMPORTS}RuntimeError: starts a process when it is imported; move that into a function (model.py line 2)",
        marks=pytest.mark.process,
    ),
    ("raise SystemExit(3)\n", f"{IMPORTS}SystemExit: 3 (model.py line 1)"),
    (
        "from torch import nn\nclass Model(nn.Linear):\n    def __init__(self, v):\n        super().__init__(v, v)\n",
        "model.source: Model has no method initial_state; see docs/guides/own-model.md",
    ),
]


@pytest.mark.parametrize(("text", "line"), BROKEN)
def test_a_file_that_cannot_be_used_gets_one_line(tmp_path: Path, text: str | None, line: str) -> None:
    if text is not None:
        (tmp_path / "model.py").write_text(text)
    (found,) = lines(answer(tmp_path))
    assert found.startswith(f"import: {line}".format(folder=tmp_path)), found


MADE = "import: model.arguments: Model cannot be made with "


@pytest.mark.parametrize("first", ["hidden_size, vocab_size", "hidden_size, words", "hidden_size=8, vocab_size=9"])
def test_a_class_that_takes_the_vocabulary_second_is_told_to_take_it_first(tmp_path: Path, first: str) -> None:
    write_model(tmp_path, ("self, vocab_size, hidden_size=8", f"self, {first}"))
    (found,) = lines(answer(tmp_path, arguments={"hidden_size": 8}))
    assert found.startswith(f"import: model.source: Model takes ({first.replace('=8', '').replace('=9', '')})"), found
    assert "vocab_size has to come first" in found


@pytest.mark.parametrize(
    ("hidden", "config", "line"),
    [
        ("h = 1 / 0", {}, "shapes: fails: ZeroDivisionError: division by zero (model.py line "),
        ("", {"arguments": {"hidden": 4}}, f"{MADE}hidden = 4: TypeError: Model.__init__() got an unexpected"),
        ("", {"arguments": {"hidden_size": -4}}, f"{MADE}hidden_size = -4: RuntimeError: Trying to create"),
        ("", {"sha256": "00"}, "import: model.sha256: model.py in {folder} changed: expected sha256 00, found "),
    ],
)
def test_a_model_that_cannot_be_made_or_called_gets_one_line(
    tmp_path: Path, hidden: str, config: dict[str, Any], line: str
) -> None:
    write_model(tmp_path, ("# hidden", hidden))
    (found,) = lines(answer(tmp_path, **config))
    assert found.startswith(line.format(folder=tmp_path)), found
