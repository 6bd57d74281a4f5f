"""A run is cancelled, as ``seqlm cancel`` does it."""

from seqlm.records.requests import RequestFile, Wanted
from seqlm.requests import file_request
from seqlm.rundir import RunDirectory


def cancel(*runs: RunDirectory) -> None:
    """File the request that cancels runs of one study."""
    file_request(runs[0].path.parent, RequestFile(kind="cancel", runs={run.id: Wanted() for run in runs}))
