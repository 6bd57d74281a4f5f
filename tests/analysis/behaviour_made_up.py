"""Behaviour files made up for tests, in the form that ``launch.py behaviour`` writes."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from seqlm.files import write_json, write_json_lines
from seqlm.rundir import BEHAVIOUR_VERSION, RunDirectory

BLOCKS = ((6.5, 5.5, 5.0, 4.5), (5.5, 4.5, 4.0, 4.0))


def add_behaviour(run: RunDirectory, blocks: Sequence[Sequence[float]] = BLOCKS, **changes: Any) -> dict[str, Any]:
    """Write ``behaviour.json`` and ``losses.f32``; ``changes`` replace whole keys of the first.

    ``blocks``: of each, the mean losses at four steps.
    """
    losses = np.ravel(blocks).astype("<f4").tobytes()
    run.losses_file.write_bytes(losses)
    raw: dict[str, Any] = {
        "version": BEHAVIOUR_VERSION,
        "checkpoint_sha256": "ab" * 32,
        "best_epoch": 3,
        "panel": [member("first"), member("second")],
        "held_out": [raw_measures(rating=4.0, copied=[]), raw_measures(rating=5.0, copied=[])],
        "losses": {"blocks": len(blocks), "sha256": hashlib.sha256(losses).hexdigest()},
        "settings": {
            "window": 4,
            "samples": 2,
            "lengths": [2, 4],
            "temperature": 1.0,
            "prompt": None,
            "gradient_columns": 20,
            "seed": 7,
        },
        "device": "cpu",
        "seconds": 1.5,
        "seq_len": 2,
        "level": "word",
        "corpus": "ptb",
        "loss_per_step": {
            "split": "valid",
            "window": 4,
            "windows": 5,
            "columns": 20,
            "zero_state": np.mean(blocks, axis=0).tolist(),
            "carried_state": [5.0, 4.75, 4.5, 4.25],
            "tokens": 100 * len(blocks),
        },
        "gradient_norms": {
            "split": "train",
            "window": 3,
            "columns": 20,
            "overall": [0.0, 0.25, 1.0],
            "mean_of_norms": [0.5, 1.0, 2.0],
            "layers": [[0.0, 0.25, 0.75], [0.0, 0.0, 0.5]],
        },
        **changes,
    }
    write_json(run.path / "behaviour.json", raw)
    return raw


def add_behaviour_of_version_3(run: RunDirectory) -> None:
    """Write the files of a version that had neither a panel nor ``losses.f32``."""
    raw = add_behaviour(run, version=3)
    run.losses_file.unlink()
    for key in ("panel", "held_out", "losses"):
        del raw[key]
    del raw["loss_per_step"]["tokens"]
    judge = {"id": "other-1", "name": "the judge", "checkpoint_sha256": "cd" * 32}
    write_json(run.behaviour_file, {**raw, "judge": judge})
    lines = []
    for index in range(3):
        line = raw_sample(index, ["a", "b", "c"])
        del line["panel"], line["ends_known_triple"]
        for key in ("rating", "known_pairs", "known_triples"):
            del line["measures"][key]
        lines.append({**line, "measures": {**line["measures"], "perplexity_other": 9.0}})
    add_samples(run, lines)


def member(name: str) -> dict[str, str]:
    """A run of a panel."""
    return {"id": f"{name}-1", "name": name, "checkpoint_sha256": hashlib.sha256(name.encode()).hexdigest()}


def raw_measures(**measures: Any) -> dict[str, Any]:
    """The measures of an ordinary text, but for ``measures``."""
    ordinary = {
        "perplexity_own": 50.0,
        "rating": 4.5,
        "known_pairs": 0.75,
        "known_triples": 0.5,
        "repetition": 0.1,
        "distinct_1": 0.9,
        "distinct_2": 0.95,
        "distinct_3": 1.0,
        "unk_share": 0.0,
        "longest_copy": 0,
        "copied": [],
    }
    return {**ordinary, **measures}


def raw_sample(index: int, tokens: list[str], losses: Sequence[float] | None = None, **measures: Any) -> dict[str, Any]:
    """A line of ``samples.jsonl``; ``measures`` replace those of an ordinary text, ``entropy`` that of each token.

    ``losses``: of each token under both runs of the panel. The rating follows from them, and the share of ``<unk>``
    from the tokens.
    """
    entropy = measures.pop("entropy", [1.0] * len(tokens))
    known = measures.pop("ends_known_triple", [False] * len(tokens))
    losses = [4.0] * len(tokens) if losses is None else losses
    of_words = [loss for loss, token in zip(losses, tokens, strict=True) if token != "<unk>"]
    derived = {
        "rating": sum(of_words) / len(of_words) if of_words else None,
        "unk_share": tokens.count("<unk>") / len(tokens),
    }
    return {
        "index": index,
        "length": len(tokens) + 1,
        "prompt": ["the"],
        "tokens": tokens,
        "entropy": entropy,
        "log_prob": [-2.0] * len(tokens),
        "measures": raw_measures(**{**derived, **measures}),
        "panel": [[-loss for loss in losses]] * 2,
        "ends_known_triple": known,
    }


def add_samples(run: RunDirectory, samples: list[dict[str, Any]]) -> None:
    write_json_lines(run.path / "samples.jsonl", samples)
