"""seqlm: a language-model study from one manifest."""

__version__ = "0.2.0"
