"""Behaviour files made up for tests, in the form that ``launch.py behaviour`` writes."""

from typing import Any

from seqlm.files import write_json, write_json_lines
from seqlm.rundir import BEHAVIOUR_VERSION, RunDirectory


def add_behaviour(run: RunDirectory, **changes: Any) -> dict[str, Any]:
    """Write ``behaviour.json``; ``changes`` replace whole keys of it."""
    raw: dict[str, Any] = {
        "version": BEHAVIOUR_VERSION,
        "checkpoint_sha256": "ab" * 32,
        "best_epoch": 3,
        "judge": {"id": "other-1", "name": "the judge", "checkpoint_sha256": "cd" * 32},
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
            "zero_state": [6.0, 5.0, 4.5, 4.25],
            "carried_state": [5.0, 4.75, 4.5, 4.25],
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


def raw_sample(index: int, tokens: list[str], **measures: Any) -> dict[str, Any]:
    """A line of ``samples.jsonl``; ``measures`` replace those of an ordinary text, ``entropy`` that of each token."""
    entropy = measures.pop("entropy", [1.0] * len(tokens))
    ordinary = {
        "perplexity_own": 50.0,
        "perplexity_other": 100.0,
        "repetition": 0.1,
        "distinct_1": 0.9,
        "distinct_2": 0.95,
        "distinct_3": 1.0,
        "unk_share": 0.0,
        "longest_copy": 0,
        "copied": [],
    }
    return {
        "index": index,
        "length": len(tokens) + 1,
        "prompt": ["the"],
        "tokens": tokens,
        "entropy": entropy,
        "log_prob": [-2.0] * len(tokens),
        "measures": {**ordinary, **measures},
    }


def add_samples(run: RunDirectory, samples: list[dict[str, Any]]) -> None:
    write_json_lines(run.path / "samples.jsonl", samples)
