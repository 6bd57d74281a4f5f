"""``python -m tests.simulation [SEED | --seeds N | --minutes M]``: play stories, and tell the first that goes wrong."""

import os
import sys

if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is part of a story
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
os.environ["SEQLM_TEST_WITHOUT_TORCH"] = "1"
sys.executable = "python"  # the words of a command are part of a story, too

from tests.simulation import seam  # noqa: E402

seam.install()

import tests.tools.stub_worker  # noqa: E402, F401 -- first: it puts others in the place of modules that need torch
from tests.simulation.command import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
