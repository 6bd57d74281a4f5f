"""Write the generated parts of docs/, or with ``--check`` compare them and exit with 1 if one is stale."""

from __future__ import annotations

import sys

from tests.reference.pages import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
