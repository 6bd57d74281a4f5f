"""The fields of the documents of ``--json`` and the kinds of errors, for docs/reference/json.md."""

from jobs.cli import answers, documents
from seqlm import errors
from tests.reference.markdown import prose, table


def parts() -> dict[str, str]:
    """Return the table of what every document has, those of the commands, and that of the kinds of errors."""
    before, envelope, rest = documents.TABLES.read_text("utf-8").partition(f"## {documents.ENVELOPE}\n")
    assert envelope
    assert not before
    first, heading, others = rest.partition("\n### ")
    return {"document": first, "documents": heading + others, "error-kinds": _kinds()}


def kinds() -> dict[str, tuple[str, str]]:
    """Return each kind of error -> its exit code (``""``: that of the outcome) and its meaning."""
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.SeqlmError)]
    own = {one.KIND: (str(one.exit_code), prose(one.__doc__ or "")) for one in classes if "KIND" in vars(one)}
    own[errors.FileError.FULL] = ("1", "A disk or a quota is full.")
    return {**own, **{kind: ("", f"{text[:1].upper()}{text[1:]}.") for kind, text in answers.KINDS.items()}}


def _kinds() -> str:
    return table(["kind", "exit code", "meaning"], [[f"`{kind}`", *row] for kind, row in kinds().items()])
