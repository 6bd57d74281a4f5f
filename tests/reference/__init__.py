"""The generated parts of docs/: ``python -m tests.reference`` writes them, and ``--check`` fails if one is stale.

A page holds its generated parts between ``<!-- generated: NAME -->`` and ``<!-- end -->``. Everything else on a page is
written by hand. Each module here makes the parts of one subject from the code.
"""
