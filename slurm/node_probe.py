"""Program that ``doctor`` runs on a compute node. It writes its findings into its own folder.

It is copied into a folder shared by node and launcher and started as a file, so it needs only a Python interpreter.
"""

from __future__ import annotations

import json
import platform
import socket
import sys
from pathlib import Path
from typing import Any

ANSWER = "answer.json"


def main() -> None:
    """Write the answer twice: first without torch, then with it, since importing torch may take long or fail."""
    folder = Path(__file__).absolute().parent
    answer: dict[str, Any] = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "torch": None,
    }
    _write(folder, answer)
    _write(folder, {**answer, "torch": _torch()})


def _torch() -> dict[str, Any]:
    try:
        import torch

        cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        devices = [(card.name, (card.major, card.minor)) for card in cards]
        built_for = torch.cuda.get_arch_list()
    except Exception as error:  # a broken installation may raise anything
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"version": str(torch.__version__), "devices": devices, "built_for": built_for}


def _write(folder: Path, answer: dict[str, Any]) -> None:
    temporary = folder / f"{ANSWER}.new"
    temporary.write_text(json.dumps(answer), encoding="utf-8")
    temporary.replace(folder / ANSWER)


if __name__ == "__main__":
    main()
