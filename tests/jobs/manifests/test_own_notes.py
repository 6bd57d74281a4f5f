"""What the manifests that come with seqlm say in reports: results by reference, never as a bare number."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import jobs.manifests
from jobs.manifests.load import Manifest, load_manifest
from seqlm.references import references_in

OWN = sorted(Path(jobs.manifests.__file__).parent.glob("*.toml"))
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.,]*\d)")
HOLDS_RESULTS = re.compile(r"perplexit|\bppl\b|reach|gave|gives", re.IGNORECASE)


def sentences(manifest: Manifest) -> Iterator[str]:
    texts = [*manifest.notes.values()]
    texts += [claim[key] or "" for claim in manifest.expectations for key in ("text", "why", "otherwise")]
    for text in texts:
        yield from re.split(r"(?<=[.:;])\s", text)


def bare_results(manifest: Manifest) -> list[str]:
    """Sentences with a published perplexity of the manifest, or with a number from 40 on beside the word."""
    published = {
        float(value)
        for found in manifest.published.values()
        for value in (found.train_ppl, found.val_ppl, *(found.replications or ()))
        if value is not None
    }
    wrong = []
    for sentence in sentences(manifest):
        text = sentence
        for written in references_in(sentence):
            text = text.replace(f"{{{written}}}", "")
        numbers = {float(number.replace(",", "")) for number in NUMBER.findall(text)}
        is_about_results = HOLDS_RESULTS.search(text) is not None
        if numbers & {value for value in published if value > 100} or (
            is_about_results and max(numbers, default=0) > 40
        ):
            wrong.append(sentence)
    return wrong


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_notes_of_our_manifests_hold_no_bare_perplexity(path: Path) -> None:
    assert bare_results(load_manifest(path)) == []


def test_a_bare_perplexity_is_found(tmp_path: Path) -> None:
    (paper,) = (path for path in OWN if path.stem == "paper")
    text = paper.read_text("utf-8")
    assert "{run.rnn-sgd.val_ppl}" in text
    (tmp_path / "paper.toml").write_text(text.replace("{run.rnn-sgd.val_ppl}", "2,210"))
    assert len(bare_results(load_manifest(tmp_path / "paper.toml"))) == 1


def test_the_published_study_names_what_to_run_next_and_what_a_contrary_outcome_would_mean() -> None:
    (paper,) = (load_manifest(path) for path in OWN if path.stem == "paper")
    assert "next" in paper.notes
    assert all(claim["why"] and claim["otherwise"] for claim in paper.expectations)
    about = [claim for claim in paper.expectations if any("transformer-adam" in run for run in claim["higher"])]
    assert {claim["metric"] for claim in about} >= {"final_gap", "val_ppl"}
