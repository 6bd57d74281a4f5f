"""Files of a working folder that have the names of modules. Nothing of seqlm may import them."""

from pathlib import Path

OURS = ("analysis", "jobs", "launch", "slurm")
NAMES = (*OURS, "random", "torch", "types")


def put_modules(folder: Path, names: tuple[str, ...] = NAMES) -> None:
    """Write modules with these names that end the process that imports them."""
    for name in names:
        (folder / f"{name}.py").write_text(f"raise SystemExit('{name}.py of the working folder has been imported')\n")
