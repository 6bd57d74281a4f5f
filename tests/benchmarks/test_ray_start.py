from benchmarks.ray_start import COMMAND, STEPS, as_markdown, summary

ENDS = {"local": (9.0, 2.0, 4.0), "ray": (9.0, 8.0, 6.0), "ray before": (9.0, 16.0, 16.0)}
"""Seconds of each round, the first of which does not count."""
OPENS = {"steps": (9.0, 1.0, 3.0), "steps before": (9.0, 4.0, 4.0)}


def test_what_ray_adds_is_taken_within_the_rounds_that_count() -> None:
    measured = {name: [{**dict.fromkeys(COMMAND, 1.0), "end": end} for end in ends] for name, ends in ENDS.items()}
    measured |= {name: [{**dict.fromkeys(STEPS, 1.0), "open": one} for one in opens] for name, opens in OPENS.items()}
    found = summary(measured, rounds=2)
    assert found["turns"]["ray"]["end"] == {"median": 7.0, "least": 6.0, "most": 8.0}
    assert found["compared"]["seconds that ray takes longer than local"] == {"median": 4.0, "least": 2.0, "most": 6.0}
    assert found["compared"]["ray in its seconds before"]["median"] == 0.438
    assert found["compared"]["open in its seconds before"] == {"median": 0.5, "least": 0.25, "most": 0.75}
    circumstances = {
        "git": {"commit": None, "dirty": False},
        "versions": {"ray": "2.60.0"},
        **{"command": "c", "date": "d", "processor": "p", "cores": 2},
        **{f"load_average_{when}": [0.5, 0.5, 0.5] for when in ("before", "after")},
    }
    table = as_markdown({**found, **circumstances})
    assert "| ray | 1 (1-1) | 1 (1-1) | 1 (1-1) | 7 (6-8) |" in table
    assert "| steps | 1 (1-1) | 2 (1-3) | 1 (1-1) | 1 (1-1) |" in table
    without = {name: rows for name, rows in measured.items() if not name.endswith("before")}
    assert "open in its seconds before" not in summary(without, rounds=2)["compared"]
