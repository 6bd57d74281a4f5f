"""How a finished run's model behaves: its loss along a window, its gradients back in time, and texts that it writes.

The only part of ``analysis`` that needs torch. A program of its own, ``python -m analysis.behaviour JOB_DIR``, which
the rest of the analysis never imports: it reads what this leaves in the run's folder.

Letters as in :mod:`seqlm.models`: B batch, T time, V vocabulary, H hidden units, L layers.
"""
