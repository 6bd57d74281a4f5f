"""Lines about what is wrong with a file, gathered so that all are told at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jobs.manifests.reader import one_line
from seqlm.errors import nearest


class Problems:
    """Lines in the order in which they were found, each once."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}

    @property
    def lines(self) -> list[str]:
        return list(self._lines)

    def about(self, where: str) -> bool:
        """Whether anything was found wrong with one place."""
        return any(line.startswith(f"{where}: ") for line in self._lines)

    def add(self, where: str, what: str) -> None:
        self._lines[one_line(f"{where}: {what}")] = None

    def unknown(self, where: str, key: str, valid: Iterable[str], listed: Sequence[str] | None = None) -> None:
        """A key that is none of ``valid``, in full; ``listed`` is what to show of those without a section."""
        valid = list(valid)
        section, _, last = key.rpartition(".")
        same_last = [name for name in valid if name.rpartition(".")[2] == last]
        hint = f'; did you mean "{same_last[0]}"?' if len(same_last) == 1 else nearest(key, valid)
        if section == "resources" and not any(name.startswith("resources.") for name in valid):
            hint = "; resources stand in [resources] or in an entry"
        if key.partition(".")[0] == "published" and not any(name.startswith("published.") for name in valid):
            hint = "; published results stand in a [[run]]"
        if last == "seeds" and last not in valid:
            hint = '; "seeds" stands at the top of the file, above the first [table], or in an entry'
        siblings = [name.rpartition(".")[2] for name in valid if name.rpartition(".")[0] == section] if section else []
        if siblings:
            options = f"in {section}: {', '.join(sorted(siblings))}"
        else:
            options = ", ".join(listed or dict.fromkeys(name.partition(".")[0] for name in valid))
        self.add(where, f'unknown key "{key}"{hint} (valid{" " if siblings else ": "}{options})')
