"""The JSON Schema (draft 2020-12) of a manifest, with which editors complete and check manifests.

It is made from the dataclasses of the tables and of :mod:`seqlm.config`. In an entry the keys of a section may be
nested (``model: {arch: rnn}``) or dotted (``"model.arch": rnn``). TOML's own dotted keys are nested ones.

A schema sees one value or one table at a time. Conditions across tables, such as names that must differ, are checked
only when the manifest is loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from jobs.manifests.backends import BACKENDS, VARIABLE
from jobs.manifests.claims import Claim, Published, Report
from jobs.manifests.entries import TOP_KEYS, EntryTable, StudyTable
from jobs.manifests.fields import model_of
from jobs.manifests.policy import Policy
from jobs.manifests.sbatch import EITHER, FLAGS, OPTIONS, OURS
from jobs.spec import Resources
from seqlm.config import VARIANTS, RunConfig, choices_of
from seqlm.schema import fields_of

Schema: TypeAlias = dict[str, Any]

_TEXT_OR_NUMBER: Schema = {"type": ["string", "number"]}


def manifest_schema() -> Schema:
    """Return the schema of a whole manifest."""
    seeds = table_keys(EntryTable)["seeds"]
    tables: dict[str, Schema] = {
        "study": _table(table_keys(StudyTable), required=("name",)),
        "defaults": _table(_both_ways(config_keys())),
        **{kind: {"type": "array", "items": _entry(kind)} for kind in ("run", "grid", "zip")},
        "exclude": {"type": "array", "items": _exclude()},
        "expect": {"type": "array", "items": _table(table_keys(Claim), required=("text", "lower", "higher"))},
        "report": _table(
            {
                "behaviour": {**table_keys(Report)["behaviour"], "uniqueItems": True},
                "groups": {**table_keys(Report)["groups"], "additionalProperties": False},
            }
        ),
        "seeds": seeds,
        "resources": _table(table_keys(Resources)),
        "policy": _table({**policy_keys(), **_old_policy_keys()}),
        "backend": _table({name: _table(backend_keys(name)) for name in BACKENDS}),
    }
    with_default_seed: Schema = {"required": ["seeds", "defaults"], "properties": {"defaults": {"required": ["seed"]}}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "seqlm manifest",
        "description": "One file that says which runs make a study.",
        **_table({key: tables[key] for key in TOP_KEYS}, required=("study",)),
        "anyOf": [{"required": [kind], "properties": {kind: {"minItems": 1}}} for kind in ("run", "grid", "zip")],
        "not": with_default_seed,
    }


# -- keys ------------------------------------------------------------------------------------------------------------


@functools.cache
def table_keys(kind: type) -> dict[str, Schema]:
    """Return the schema of each key of a table: a dataclass with the annotations that :func:`model_of` reads."""
    found = model_of(kind).model_json_schema()["properties"]
    return {name: _plain(schema) for name, schema in found.items()}


def policy_keys() -> dict[str, Schema]:
    """Return the schema of each key of ``[policy]``, with defaults as a manifest writes them."""
    defaults = Policy().to_dict()
    return {name: {**schema, "default": defaults[name]} for name, schema in table_keys(Policy).items()}


def _old_policy_keys() -> dict[str, Schema]:
    keys = policy_keys()
    return {
        old: {**keys[name], "description": f"Earlier name of `{name}`.", "deprecated": True}
        for old, name in Policy.OLD_NAMES.items()
    }


@functools.cache
def backend_keys(backend: str) -> dict[str, Schema]:
    """Return the schema of each key of ``[backend.*]``."""
    keys = dict(table_keys(BACKENDS[backend]))
    keys["env"] = {**keys["env"], "propertyNames": {"pattern": VARIABLE}}
    if "sbatch" in keys:
        options: dict[str, Schema] = {}
        for option in sorted(OPTIONS - OURS.keys()):
            schema: Schema = {"const": True} if option in FLAGS else _TEXT_OR_NUMBER
            schema = {"anyOf": [{"const": True}, schema]} if option in EITHER else schema
            options |= {option: schema, option.replace("-", "_"): schema}
        keys["sbatch"] = {**keys["sbatch"], **_table(options)}
    return keys


@functools.cache
def config_keys() -> dict[str, Schema]:
    """Return the schema of each dotted key of a run's configuration, and of ``seed``.

    A key of several variants (architectures, optimizers) has their descriptions. A default that differs between them
    is left out; a key that not all variants have says which ones do.
    """
    keys: dict[str, Schema] = {}
    for section, (selector, variants) in VARIANTS.items():
        for name in dict.fromkeys(name for variant in variants for name in table_keys(variant)):
            owners = {variant: table_keys(variant)[name] for variant in variants if name in table_keys(variant)}
            merged = dict(next(iter(owners.values())))
            if name == selector:
                merged = {"enum": list(choices_of(f"{section}.{name}")), "description": merged["description"]}
            names = {variant: ", ".join(choices(variant, selector)) for variant in owners}
            texts: dict[str, list[str]] = {}
            for variant, schema in owners.items():
                texts.setdefault(schema["description"], []).append(names[variant])
            only = f" ({', '.join(names.values())} only)" if len(owners) < len(variants) else ""
            if len(texts) > 1:
                merged["description"] = " ".join(f"{', '.join(who)}: {text}" for text, who in texts.items())
            merged["description"] += only
            if any(schema.get("default") != merged.get("default") for schema in owners.values()):
                merged.pop("default", None)
            keys[f"{section}.{name}"] = merged
    return {**keys, "seed": table_keys(RunConfig)["seed"]}


def choices(variant: type, selector: str) -> tuple[str, ...]:
    """Return the architectures or optimizers of a variant; none if its section has a single variant."""
    return fields_of(variant)[selector].choices if selector else ()


def _plain(schema: Schema) -> Schema:
    """A schema as pydantic gives it, without titles, and with single backticks in its description."""
    described = schema.get("description")
    rest = {key: value for key, value in schema.items() if key not in ("title", "description")}
    if "default" in rest and rest["default"] in (None, {}, []):
        del rest["default"]
    return {**({"description": described.replace("``", "`")} if described else {}), **rest}


# -- tables ----------------------------------------------------------------------------------------------------------


def _table(keys: Mapping[str, Schema], required: Iterable[str] = ()) -> Schema:
    table = {"type": "object", "properties": dict(keys), "additionalProperties": False}
    return {**table, "required": list(required)} if required else table


def _both_ways(keys: Mapping[str, Schema]) -> dict[str, Schema]:
    """Dotted keys as they are, and nested in a table for each section."""
    sections: dict[str, dict[str, Schema]] = {}
    for key, schema in keys.items():
        section, _, name = key.rpartition(".")
        if section:
            sections.setdefault(section, {})[name] = schema
    return {**{section: _table(inner) for section, inner in sections.items()}, **keys}


def _or_list(schema: Schema) -> Schema:
    """One value, or a list of at least one."""
    outer = {key: value for key, value in schema.items() if key in ("description", "default")}
    value = {key: inner for key, inner in schema.items() if key not in outer}
    return {**outer, "anyOf": [value, {"type": "array", "items": value, "minItems": 1}]}


def _entry(kind: str) -> Schema:
    def same(schema: Schema) -> Schema:
        return schema

    many: Callable[[Schema], Schema] = same if kind == "run" else _or_list
    keys = {key: many(schema) for key, schema in config_keys().items()}
    share = same if kind == "grid" else many
    keys |= {f"resources.{key}": share(schema) for key, schema in table_keys(Resources).items()}
    if kind == "run":
        keys |= {f"published.{key}": schema for key, schema in table_keys(Published).items()}
    return {
        **_table({**table_keys(EntryTable), **_both_ways(keys)}),
        "not": {"required": ["seed", "seeds"]},
        "allOf": _applicability(),
    }


def _applicability() -> list[Schema]:
    """For each architecture and optimizer that an entry names: the keys that it may not have."""
    rules: list[Schema] = []
    for section, (selector, variants) in VARIANTS.items():
        names = {name for variant in variants for name in table_keys(variant)}
        for variant in variants:
            absent = dict.fromkeys(sorted(names - table_keys(variant).keys()), False)
            chosen: Schema = {"enum": list(choices(variant, selector))}
            if not absent:
                continue
            nested: Schema = {"required": [selector], "properties": {selector: chosen}}
            dotted = f"{section}.{selector}"
            either = [
                {"required": [section], "properties": {section: nested}},
                {"required": [dotted], "properties": {dotted: chosen}},
            ]
            forbidden = {section: {"properties": absent}, **{f"{section}.{name}": False for name in absent}}
            rules.append({"if": {"anyOf": either}, "then": {"properties": forbidden}})
    return rules


def _exclude() -> Schema:
    name: Schema = {"type": "string", "description": "Name of a run, or a shell-style pattern such as `rnn-*`."}
    keys = {key: _or_list(schema) for key, schema in {"name": name, **config_keys()}.items()}
    return {**_table(_both_ways(keys)), "minProperties": 1}
