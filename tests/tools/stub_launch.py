"""The command line of seqlm, whose runs the stub trains (:mod:`tests.tools.stub_worker`)."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[0] = str(ROOT)

import launch  # noqa: E402 -- of this tree
from jobs.launch.job import StudySettings  # noqa: E402

STUB = (str(Path(__file__).with_name("stub_worker.py")),)
"""The command line of the stub, without the interpreter and the run's folder."""


def main() -> int:
    """Run a command, also in the background, with the stub in the place of the worker."""
    from jobs.cli import launching

    launching.LAUNCH_FILE = Path(__file__)
    StudySettings.__init__.__kwdefaults__["worker"] = STUB
    return launch.main()


if __name__ == "__main__":
    sys.exit(main())
