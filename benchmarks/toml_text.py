"""Plain data as the text of a TOML file, for manifests that a program writes."""

import json
from collections.abc import Mapping, Sequence


def toml_text(data: Mapping[str, object]) -> str:
    """Return a document with one line for each key; tables are inline tables."""
    return "".join(f"{json.dumps(key)} = {_value(value)}\n" for key, value in data.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{json.dumps(key)} = {_value(inner)}' for key, inner in value.items())} }}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)
