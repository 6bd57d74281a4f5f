"""Small programs on PATH that answer as SLURM's own do."""

from pathlib import Path


def program(folder: Path, name: str, body: str) -> None:
    """Put a shell script in a folder that is on PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
    path.chmod(0o755)


def answering(folder: Path, name: str, answer: str, *, code: int = 0, to: str = "stdout") -> None:
    """A program that always prints one text, and records its arguments in ``NAME.asked``."""
    (folder / f"{name}.answer").write_text(answer, "utf-8")
    redirect = " >&2" if to == "stderr" else ""
    program(folder, name, f'echo "$@" >> "{folder}/{name}.asked"\ncat "{folder}/{name}.answer"{redirect}\nexit {code}')
