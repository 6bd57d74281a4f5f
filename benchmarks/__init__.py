"""Measured comparisons; ``benchmarks/README.md`` says what each of them measures."""
