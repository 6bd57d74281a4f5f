"""The user's own models in the tables of a study: each file and class is an architecture, with a name in print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from analysis.study import units
from seqlm.architectures import CLASS_SEPARATOR, CustomConfig
from seqlm.config import OPEN_TABLES, base_key, valid_keys

MOST_LETTERS = 30
"""Of a name in print."""
_OWN = {f"model.{name}" for name in CustomConfig.__dataclass_fields__}


def as_columns(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration, by dotted key, as the columns of the runs table.

    Of a user's own model, the architecture is its file and class. An argument with the name of a key of seqlm's
    architectures, such as ``hidden_size``, is in the column of that key. The others are in ``model.arguments``.

    >>> as_columns({"model.arch": "custom", "model.source": "a.py:A", "model.arguments.hidden_size": 8})
    {'model.arch': 'a.py:A', 'model.hidden_size': 8}
    """
    if "model.source" not in config:
        return dict(config)
    columns = {key: value for key, value in config.items() if base_key(key) not in (*OPEN_TABLES, *_OWN)}
    known, others = valid_keys(), []
    found: dict[str, Any] = {"model.arch": config["model.source"]}
    for key, value in config.items():
        name = key.removeprefix(f"{base_key(key)}.")
        if base_key(key) not in OPEN_TABLES or name == key:
            continue
        if f"model.{name}" in known and f"model.{name}" not in _OWN:
            found[f"model.{name}"] = value
        else:
            others.append(f"{name} = {units.plain_value(value)}")
    if others:
        found["model.arguments"] = ", ".join(sorted(others))
    if config.get("model.sha256") is not None:
        found["model.sha256"] = config["model.sha256"]
    return {**found, **columns}


def forget_single_digests(configs: Iterable[dict[str, Any]]) -> None:
    """Remove the digest of each model of which there is one version only: it says no more than the model's name."""
    configs = list(configs)
    versions: dict[Any, set[Any]] = {}
    for config in configs:
        versions.setdefault(config.get("model.arch"), set()).add(config.get("model.sha256"))
    for config in configs:
        if len(versions[config.get("model.arch")]) == 1:
            config.pop("model.sha256", None)


def names_in_print(archs: Iterable[str | None], labels: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each own model among ``archs``, in their order: its label, else its class.

    ``labels`` are those that models give themselves. Models of one name are told apart by their files.
    """
    keys = dict.fromkeys(arch for arch in archs if arch is not None and CLASS_SEPARATOR in arch)
    names = {key: (labels.get(key) or key.rpartition(CLASS_SEPARATOR)[2])[:MOST_LETTERS] for key in keys}
    taken = [*units.BUILT_IN.values(), *names.values()]
    return {key: name if taken.count(name) == 1 else f"{name} ({key})" for key, name in names.items()}
