"""The layers of the packages, from the rule in pyproject.toml that `make lint` checks."""

import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def parts() -> dict[str, str]:
    """Return the list of the layers, highest first."""
    (rule,) = (
        contract
        for contract in tomllib.loads(PYPROJECT.read_text("utf-8"))["tool"]["importlinter"]["contracts"]
        if contract["name"] == "imports point down"
    )
    layers = [", ".join(f"`{module.strip()}`" for module in layer.split("|")) for layer in rule["layers"]]
    return {"layers": "\n".join(f"1. {layer}" for layer in layers)}
