"""What the report claims: typed statements, each with the numbers behind it, and one policy for when it says them.

:mod:`analysis.claims.verdict` decides whether two numbers are told apart. :mod:`analysis.claims.claim` has the kinds of
claims and their words; nothing else in the report compares. :mod:`analysis.claims.answers` asks the questions of the
study. All claims are written to ``data/claims.json``.
"""
