import json
import math
from pathlib import Path

import pytest
import tokenizers

from analysis.api import open_study
from analysis.behaviour.__main__ import main
from seqlm.config import RunConfig
from seqlm.data.corpus import load_corpus, resolve_data
from seqlm.files import write_json
from seqlm.records.runs import Provenance
from seqlm.rundir import RunDirectory
from tests.seqlm.data.bpe import train_tokenizer
from tests.seqlm.training.studies import Attempt, make_config, write_text


@pytest.mark.slow
def test_a_run_with_a_tokenizer_writes_text_and_bits_per_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, bpe = write_text(tmp_path / "text", train_lines=40), train_tokenizer(tmp_path / "bpe.json")
    monkeypatch.setenv("SEQLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SEQLM_DATA", str(text))
    monkeypatch.setenv("SEQLM_DEVICE", "cpu")
    raw = make_config(epochs=1).to_dict()
    config = RunConfig.from_dict({**raw, "data": {"corpus": "files", "tokenizer": "bpe.json"}})
    data = resolve_data(config.data, text, bpe)
    config = RunConfig.from_dict({**raw, "data": vars(data)})
    run, job = RunDirectory(tmp_path / "runs/s/a-1"), RunDirectory(tmp_path / "runs/s/behaviour/a-1")
    for folder in (run, job):
        folder.create(config, Provenance(name="a"), bpe)
    bpe.unlink()

    corpus = load_corpus(data, text, run.tokenizer_file)
    result = Attempt(run, corpus).train()
    nats = result.best_val_loss * len(corpus.splits["valid"])
    size = (text / "valid.txt").stat().st_size
    assert result.best_val_bits_per_byte == pytest.approx(nats / math.log(2) / size)
    assert result.lossless is True

    write_json(job.task_file, {"settings": {"samples": 2, "lengths": [12], "prompt": "the cat"}})
    assert main([str(job.path)]) == 0
    library = tokenizers.Tokenizer.from_file(str(run.tokenizer_file))
    samples = [json.loads(line) for line in run.samples_file.read_text("utf-8").splitlines()]
    for sample in samples:
        assert "".join(sample["prompt"]) == "the cat"
        assert len(sample["prompt"]) == len(library.encode("the cat").ids)
        assert len(sample["tokens"]) == 12
        assert "Ġ" not in "".join(sample["tokens"]), "text, not the names of the tokens"
    study = open_study(run.path.parent)
    assert study.samples["text"].to_list() == ["".join(sample["tokens"]) for sample in samples]
    assert study.epochs["val_bits_per_byte"].to_list() == [result.best_val_bits_per_byte]
    assert study.runs["test_bits_per_byte"].to_list() == [result.test_bits_per_byte]
