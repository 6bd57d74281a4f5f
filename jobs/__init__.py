"""From a manifest to jobs: expansion, planning, dispatch, and the backends that run on one machine."""
