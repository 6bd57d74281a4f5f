"""The JSON Schema (draft 2020-12) of a manifest, with which editors complete and check manifests.

It is made from the dataclasses of the tables and of :mod:`seqlm.config`. It sees one value at a time: conditions across
keys, such as those that not every architecture has, are checked only when the manifest is loaded.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeAlias

from pydantic import TypeAdapter

from jobs.manifests.claims import Claim, Published, Report
from jobs.manifests.decide import Decide
from jobs.manifests.entries import ENTRY_KINDS, TOP_KEYS, EntryTable, SampleTable, StudyTable
from jobs.manifests.expand import SECTIONS
from jobs.manifests.policy import Notify, Policy
from jobs.manifests.reader import table_of
from jobs.registry import BACKENDS
from seqlm.config import LIST_KEYS, OPEN_TABLES, VARIANTS, RunConfig, choices_of, nested, valid_keys
from seqlm.resources import Resources
from seqlm.schema import fields_of
from seqlm.search import Search

Schema: TypeAlias = dict[str, Any]
DRAWN: Schema = {"$ref": "#/$defs/distribution"}
LINK: Schema = {"$ref": "#/$defs/link"}


def manifest_schema() -> Schema:
    """Return the schema of a whole manifest."""
    report, search = table_keys(Report), table_keys(Search)
    within = search["within"]
    pattern: Schema = {"type": "string", "description": "Name of a run, or a shell-style pattern such as `rnn-*`."}
    tables: dict[str, Schema] = {
        "study": _table(table_keys(StudyTable), required=["name"]),
        "defaults": _table(_nested(_or_links(config_keys()))),
        **{kind: {"type": "array", "items": _entry(kind)} for kind in ENTRY_KINDS if kind != "sample"},
        "sample": {"type": "array", "items": _sample()},
        "exclude": {
            "type": "array",
            "items": _table(_nested(_or_lists({"name": pattern, **config_keys()})), minProperties=1),
        },
        "expect": {"type": "array", "items": _table(table_keys(Claim), required=["text", "lower", "higher"])},
        "decide": {"type": "array", "items": _table(table_keys(Decide), required=["a", "b"])},
        "report": _table(
            {
                "behaviour": {**report["behaviour"], "uniqueItems": True},
                "groups": {**report["groups"], "additionalProperties": False},
                "notes": report["notes"],
            }
        ),
        "seeds": table_keys(EntryTable)["seeds"],
        "resources": _table(table_keys(Resources)),
        "policy": _table(table_keys(Policy)),
        "notify": _table(table_keys(Notify)),
        "search": _table(
            {
                **search,
                "rungs": {**search["rungs"], "uniqueItems": True},
                "within": {**within, "items": {**within["items"], "enum": valid_keys()}},
            },
            required=["rungs"],
        ),
        "backend": _table({name: _table(backend_keys(name)) for name in BACKENDS}),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "seqlm manifest",
        "description": "One file that says which runs make a study.",
        **_table({key: tables[key] for key in TOP_KEYS}, required=["study"]),
        "anyOf": [{"required": [kind], "properties": {kind: {"minItems": 1}}} for kind in ENTRY_KINDS],
        "not": {"required": ["seeds", "defaults"], "properties": {"defaults": {"required": ["seed"]}}},
        "$defs": {
            "distribution": _distribution(),
            "link": {
                "description": "The value of another key of the run, such as `=model.hidden_size`.",
                "type": "string",
                "pattern": r"^=\s*[a-z_]\w*(\.\w+)*\s*$",
            },
        },
    }


# -- keys ------------------------------------------------------------------------------------------------------------


@functools.cache
def table_keys(kind: type) -> dict[str, Schema]:
    """Return the schema of each key of a table. The description of a key is the docstring below its field."""
    keys: dict[str, Schema] = {}
    for base in reversed([base for base in kind.__mro__ if dataclasses.is_dataclass(base)]):
        for name, schema in TypeAdapter(base).json_schema()["properties"].items():
            described = {**keys.get(name, {}), **schema}
            text = " ".join(described.pop("description", "").replace("``", "`").split())
            kinds = [one for one in described.pop("anyOf", ()) if one != {"type": "null"}]
            described |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}
            left_out = ("title",) if described.get("default") not in (None, {}, []) else ("title", "default")
            keys[name] = {"description": text} if text else {}
            keys[name] |= {key: value for key, value in described.items() if key not in left_out}
    for name, field in fields_of(kind).items():
        if field.table is not None:
            described = {key: text for key, text in keys[name].items() if key == "description"}
            keys[name] = {**described, **_table(table_keys(field.table))}
    return keys


def backend_keys(backend: str) -> dict[str, Schema]:
    """Return the schema of each key of ``[backend.*]``."""
    kind: Any = table_of(backend)
    return {key: {**schema, **kind.SCHEMA.get(key, {})} for key, schema in table_keys(kind).items()}


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
            texts: dict[str, list[str]] = {}
            for variant, schema in owners.items():
                texts.setdefault(schema["description"], []).extend(choices(variant, selector))
            if len(texts) > 1:
                merged["description"] = " ".join(f"{', '.join(who)}: {text}" for text, who in texts.items())
            elif len(owners) < len(variants):
                names = [choice for variant in owners for choice in choices(variant, selector)]
                merged["description"] += f" ({', '.join(names)} only)"
            if any(schema.get("default") != merged.get("default") for schema in owners.values()):
                merged.pop("default", None)
            keys[f"{section}.{name}"] = merged
    return {**keys, "seed": table_keys(RunConfig)["seed"]}


def choices(variant: type, selector: str) -> tuple[str, ...]:
    """Return the architectures or optimizers of a variant; none if its section has a single variant."""
    return fields_of(variant)[selector].choices if selector else ()


# -- tables ----------------------------------------------------------------------------------------------------------


def _table(keys: Mapping[str, Schema], **more: Any) -> Schema:
    return {"type": "object", "properties": dict(keys), "additionalProperties": False, **more}


def _nested(keys: Mapping[str, Schema]) -> dict[str, Schema]:
    """Dotted keys in a table for each section."""
    tables = (*SECTIONS, "published")
    return {name: _table(found) if name in tables else found for name, found in nested(keys).items()}


def _or_lists(keys: Mapping[str, Schema]) -> dict[str, Schema]:
    """For each key one value, or a list of at least one."""
    found: dict[str, Schema] = {}
    for key, schema in keys.items():
        outer = {name: inner for name, inner in schema.items() if name in ("description", "default")}
        value = {name: inner for name, inner in schema.items() if name not in outer}
        found[key] = {**outer, "anyOf": [value, {"type": "array", "items": value, "minItems": 1}]}
    return found


def _or_links(keys: Mapping[str, Schema]) -> dict[str, Schema]:
    """For each key with a single value that, or a link to another key."""
    found: dict[str, Schema] = {}
    for key, schema in keys.items():
        outer = {name: inner for name, inner in schema.items() if name in ("description", "default")}
        value = {name: inner for name, inner in schema.items() if name not in outer}
        is_single = key not in (*LIST_KEYS, *OPEN_TABLES)
        found[key] = {**outer, "anyOf": [value, LINK]} if is_single else schema
    return found


def _dotted(section: str, keys: Mapping[str, Schema]) -> dict[str, Schema]:
    return {f"{section}.{key}": schema for key, schema in keys.items()}


def _entry(kind: str) -> Schema:
    keys, resources = _or_links(config_keys()), _dotted("resources", table_keys(Resources))
    if kind == "run":
        resources |= _dotted("published", table_keys(Published))
    else:
        keys = _or_lists(keys)
        resources = _or_lists(resources) if kind == "zip" else resources
    return _table(
        {**table_keys(EntryTable), **_nested({**keys, **resources})}, **{"not": {"required": ["seed", "seeds"]}}
    )


def _sample() -> Schema:
    single = {key: schema for key, schema in _or_links(config_keys()).items() if key != "seed"}
    for table in OPEN_TABLES:
        single[table] = {
            **single[table],
            "additionalProperties": {"anyOf": [single[table]["additionalProperties"], DRAWN]},
        }
    keys = _or_lists(single)
    for schema in keys.values():
        schema["anyOf"].append(DRAWN)
    resources = _dotted("resources", table_keys(Resources))
    properties = {**table_keys(SampleTable), **_nested({**keys, **resources})}
    return _table(properties, required=["count"])


def _distribution() -> Schema:
    """Return the schema of a distribution that is a table."""
    numbers: dict[str, tuple[str, Schema]] = {
        "uniform": ("A number between two bounds.", {"type": "number"}),
        "log_uniform": ("A number whose logarithm is uniform.", {"type": "number", "exclusiveMinimum": 0}),
        "int": ("A whole number; both bounds included.", {"type": "integer"}),
        "log_int": (
            "A whole number whose logarithm is uniform; both bounds included.",
            {"type": "integer", "minimum": 1},
        ),
    }
    keys: dict[str, Schema] = {
        name: {"description": text, "type": "array", "items": number, "minItems": 2, "maxItems": 2}
        for name, (text, number) in numbers.items()
    }
    whole = {"anyOf": [{"required": ["int"]}, {"required": ["log_int"]}]}
    one = {"oneOf": [{"required": [name]} for name in keys], "dependentSchemas": {"step": whole}}
    return _table({**keys, "step": {"type": "integer", "minimum": 1}}, **one)
