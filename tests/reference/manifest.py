"""The key tables of docs/reference/manifest.md, and the JSON Schema of manifests."""

import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from jobs.backends.base import BackendTable, SharedTable
from jobs.backends.ray_growth import Largest
from jobs.manifests.claims import Claim, Published, Report
from jobs.manifests.decide import Decide
from jobs.manifests.entries import EntryTable, SampleTable, StudyTable
from jobs.manifests.json_schema import Schema, choices, config_keys, manifest_schema, table_keys
from jobs.manifests.policy import Notify, Policy
from jobs.manifests.reader import table_of
from seqlm.config import VARIANTS, RunConfig
from seqlm.resources import Resources
from seqlm.schema import Table, fields_of
from seqlm.search import Search
from tests.reference.markdown import folded, table

FIRST = (
    "model.arch", "model.hidden_size", "model.num_layers", "model.embedding_size", "model.keep", "model.tied",
    "model.num_heads", "data.corpus", "data.level", "data.vocab_size", "optim.optimizer", "optim.lr", "optim.schedule",
    "optim.weight_decay", "train.epochs", "train.batch_size", "train.seq_len", "train.clip_norm", "train.precision",
    "seed",
)  # fmt: skip
"""The keys of a run that most readers look for; the page shows the others folded, by subject."""
FIRST_OF_SLURM = (
    "timeout_min", "mem_gb", "partition", "account", "qos", "setup", "python", "ranks_per_node", "pool", "sbatch"
)  # fmt: skip
SUBJECTS = {
    "More of `model`": ("model.",),
    "More of `data`": ("data.",),
    "More of `optim`": ("optim.",),
    "`eval`, and more of `train`": ("train.", "eval."),
}
SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "manifest.schema.json"


def schema_text() -> str:
    """Return what `seqlm schema` prints."""
    return f"{json.dumps(manifest_schema(), indent=1)}\n"


def parts() -> dict[str, str]:
    """Return the tables of keys."""
    return {f"keys-{name}": text for name, text in _tables().items()}


def _tables() -> dict[str, str]:
    common = {name: schema for name, schema in table_keys(BackendTable).items() if name != "progress_s"}
    shared = {name: schema for name, schema in table_keys(SharedTable).items() if name not in table_keys(BackendTable)}
    own = [name for name in fields_of(table_of("slurm")) if name not in common]
    return {
        "config": _config(),
        "study": _table(_prefixed("study", table_keys(StudyTable)), _prefixed("study", _defaults(StudyTable))),
        "entry": _table(
            {
                **table_keys(EntryTable),
                **_prefixed("resources", table_keys(Resources)),
                **_prefixed("published", table_keys(Published)),
            },
            {
                **_defaults(EntryTable),
                **_prefixed("resources", _defaults(Resources)),
                **_prefixed("published", _defaults(Published)),
            },
        ),
        "sample": _table(
            {name: table_keys(SampleTable)[name] for name in ("count", "seed", "only")}, _defaults(SampleTable)
        ),
        "expect": _table(table_keys(Claim), _defaults(Claim)),
        "decide": _table(table_keys(Decide), _defaults(Decide)),
        "report": _table(_prefixed("report", table_keys(Report)), _prefixed("report", _defaults(Report))),
        "policy": _table(_prefixed("policy", table_keys(Policy)), _prefixed("policy", Policy().to_dict())),
        "notify": _table(_prefixed("notify", table_keys(Notify)), _prefixed("notify", _defaults(Notify))),
        "search": _table(_prefixed("search", table_keys(Search)), _prefixed("search", _defaults(Search))),
        "backend": _table(table_keys(BackendTable), _defaults(BackendTable)),
        "shared": _table(shared, _defaults(SharedTable)),
        "ray": _table(
            {
                **{
                    key: schema
                    for key, schema in table_keys(table_of("ray")).items()
                    if key not in table_keys(SharedTable)
                },
                **_prefixed("largest", table_keys(Largest)),
            },
            {**_defaults(table_of("ray")), **_prefixed("largest", _defaults(Largest))},
        ),
        "slurm": _slurm({name: table_keys(table_of("slurm"))[name] for name in own}, _defaults(table_of("slurm"))),
    }


def _config() -> str:
    keys, defaults = dict(config_keys()), _config_defaults()
    shown = [_table({key: keys.pop(key) for key in FIRST}, defaults)]
    for title, prefixes in SUBJECTS.items():
        those = [key for key in keys if key.startswith(prefixes)]
        summary = re.sub(r"`(\w+)`", r"<code>\1</code>", title)
        shown.append(folded(f"{summary}: {len(those)} keys", _table({key: keys.pop(key) for key in those}, defaults)))
    assert not keys, "each key has a subject"
    return "\n\n".join(shown)


def _slurm(keys: dict[str, Schema], defaults: Mapping[str, Any]) -> str:
    first = _table({key: keys.pop(key) for key in FIRST_OF_SLURM}, defaults)
    return f"{first}\n\n{folded(f'{len(keys)} more keys', _table(keys, defaults))}"


def _table(keys: Mapping[str, Schema], defaults: Mapping[str, Any]) -> str:
    rows = [
        [f"`{key}`", schema["description"], kind_of(schema), _default(defaults[key])] for key, schema in keys.items()
    ]
    return table(["key", "meaning", "type", "default"], rows)


def _prefixed(section: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for key, value in keys.items()}


def kind_of(schema: Schema) -> str:
    """The JSON Schema of one value in a few words."""
    if "anyOf" in schema:
        return ", or ".join(kind_of(part) for part in schema["anyOf"] if part != {"type": "null"})
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in schema.get("enum", [schema.get("const")]))
    match schema["type"]:
        case "array":
            items = {key: value for key, value in schema["items"].items() if key not in ("minimum", "maximum")}
            number = {(2, 2): "two "}.get((schema.get("minItems"), schema.get("maxItems")), "list of ")
            plural = kind_of(items).replace("number", "numbers").replace("text", "texts")
            return f"{number}{plural}" + (", at least one" if schema.get("minItems") == 1 else "")
        case "object":
            return "table of texts" if schema.get("additionalProperties") == {"type": "string"} else "table"
        case "boolean":
            return "`true` or `false`"
        case "string":
            most = f", at most {schema['maxLength']} characters" if "maxLength" in schema else ""
            return f"text{most}"
    least, above, most, below = (
        schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    )
    parts = ["whole number" if schema["type"] == "integer" else "number"]
    parts += [f"≥ {least:g}"] if least is not None else []
    parts += [f"> {above:g}"] if above is not None else []
    parts += [f"< {below:g}"] if below is not None else []
    parts += [f"≤ {'2^32 - 1' if most == 2**32 - 1 else most}"] if most is not None else []
    return " ".join(parts[:2]) + "".join(f", {part}" for part in parts[2:])


def _default(value: Any) -> str:
    if value is MISSING:
        return "-"
    if isinstance(value, dict) and all(isinstance(names, list) for names in value.values()) and value:
        return "; ".join(f"{default} ({', '.join(names)})" for default, names in value.items())
    if value in (None, (), [], {}) or isinstance(value, Table):
        return "none"
    return f"`{json.dumps(value)}`" if isinstance(value, str | bool | tuple) else f"{value:g}"


def _defaults(kind: Any) -> dict[str, Any]:
    return {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(kind)
    }


def _config_defaults() -> dict[str, Any]:
    """The default of each dotted key; if variants differ, default -> the architectures or optimizers with it."""
    found: dict[str, Any] = {"seed": _defaults(RunConfig)["seed"]}
    for section, (selector, variants) in VARIANTS.items():
        for name in dict.fromkeys(name for variant in variants for name in fields_of(variant)):
            by_default: dict[Any, list[str]] = {}
            for variant in variants:
                if name in fields_of(variant):
                    by_default.setdefault(_defaults(variant)[name], []).extend(choices(variant, selector))
            found[f"{section}.{name}"] = by_default if len(by_default) > 1 else next(iter(by_default))
    return found
