"""The values of a run by dotted key, and the configuration that they make."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, TypeAlias

from jobs.manifests.entries import SECTIONS
from seqlm.config import RunConfig, applicable_keys, base_key, nested
from seqlm.optimizers import foreign_keys

Values: TypeAlias = Mapping[str, Any]
"""Dotted key -> value."""


def applying(values: dict[str, Any], own: Values, setting: Values) -> dict[str, Any]:
    """Return the values without what does not apply to the run's architecture, optimizer or schedule.

    Keys of the entry itself, ``own``, stay unless they are in ``setting``, so that :class:`RunConfig` reports them.
    """
    fitting = _applicable("model", "arch", text_of(values.get("model.arch")))
    fitting |= _applicable("optim", "optimizer", text_of(values.get("optim.optimizer")))
    foreign = [key for key in values if key.startswith(("model.", "optim.")) and base_key(key) not in fitting]
    for key in foreign:
        if key not in own or key in setting:
            del values[key]
    shared = {key: value for key, value in values.items() if key not in own or key in setting}
    optimizer = text_of(values.get("optim.optimizer"))
    for name in foreign_keys(optimizer, nested_tables(own)[0]["optim"], nested_tables(shared)[0]["optim"]):
        del values[(key := f"optim.{name}")]
        if key in own:
            values[key] = own[key]
    return values


@functools.cache
def _applicable(section: str, selector: str, choice: str | None) -> frozenset[str]:
    return frozenset(f"{section}.{key}" for key in applicable_keys(section, {selector: choice}))


def text_of(value: Any) -> str | None:
    """Return a value if it is a text, else ``None``."""
    return value if isinstance(value, str) else None


def config_of(own: Values, defaults: Values) -> RunConfig:
    """Return the configuration of a run with the values ``own`` in its entry, in a manifest with these defaults.

    Raises:
        ConfigError: one line for each problem.
    """
    return RunConfig.from_dict(nested_tables(applying({**defaults, **own}, own, {}))[0])


def nested_tables(values: Values) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return dotted keys as the nested tables of a configuration, and the table of resources."""
    tables = {**dict.fromkeys(SECTIONS), **nested(values)}
    tables = {key: {} if value is None and key in SECTIONS else value for key, value in tables.items()}
    return tables, tables.pop("resources")
