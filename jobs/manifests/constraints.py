"""The constraints ``only`` of a ``[[sample]]``: comparisons of arithmetic over the keys of a draw.

    parameters < 5e6                   trainable parameters of the model
    hidden_size % num_heads == 0
    model.arch != "rnn"

The grammar, in which ``//`` is the quotient rounded down::

    constraint = sum ("<" | "<=" | ">" | ">=" | "==" | "!=") sum
    sum        = product {("+" | "-") product}
    product    = factor {("*" | "/" | "//" | "%") factor}
    factor     = number | text in quotes | key | "(" sum ")" | "-" factor

A constraint on a key that a draw does not have, such as ``num_heads`` of an RNN, holds.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from seqlm.architectures import CustomConfig
from seqlm.config import OPEN_TABLES, RunConfig, base_key, valid_keys
from seqlm.errors import ConfigError, nearest_key
from seqlm.schema import show

PARAMETERS = "parameters"
"""The key whose value is the number of trainable parameters."""
PTB_WORDS = 10_000
"""Size of the vocabulary of the Penn Treebank."""
MAX_DEPTH = 20
"""Most parentheses and signs within each other."""
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<key>[A-Za-z_][\w.]*)
      | (?P<text>"[^"]*"|'[^']*')
      | (?P<sign><=|>=|==|!=|//|[-+*/%()<>])
    )""",
    re.VERBOSE,
)
_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    **{"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge},
    **{"==": operator.eq, "!=": operator.ne},
}
_SUMS: Mapping[str, Callable[[Any, Any], Any]] = {"+": operator.add, "-": operator.sub}
_PRODUCTS: Mapping[str, Callable[[Any, Any], Any]] = {
    **{"*": operator.mul, "/": operator.truediv, "//": operator.floordiv, "%": operator.mod},
}
_FORM = "expected a comparison such as 'hidden_size % num_heads == 0'"


class _MissingError(Exception):
    """A draw does not have a key."""


Lookup: TypeAlias = Callable[[str], Any]
"""Returns the value of a dotted key. Raises :class:`_MissingError` if there is none."""
_Node: TypeAlias = Callable[[Lookup], Any]
"""Returns the value of a part of a constraint, given the values of the keys."""


@final
@dataclass(frozen=True, kw_only=True)
class Constraint:
    """One constraint."""

    text: str
    keys: frozenset[str]
    """The dotted keys in it, :data:`PARAMETERS` among them."""
    _holds: Callable[[Lookup], bool]

    def holds(self, lookup: Lookup) -> bool:
        """Return whether the constraint holds.

        Raises:
            ValueError: one line; a text in arithmetic, or a division by 0.
        """
        try:
            return self._holds(lookup)
        except _MissingError:
            return True
        except ZeroDivisionError:
            raise ValueError(f'only: "{self.text}": divides by 0') from None
        except TypeError:
            raise ValueError(f'only: "{self.text}": compares or computes with a text or a truth value') from None


def parse_constraint(text: str) -> Constraint:
    """Read a constraint.

    Raises:
        ValueError: one line, which begins with ``only``.
    """
    return _Parser(text).parse()


@final
class _Parser:
    """Reads one constraint from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._keys: set[str] = set()
        self._tokens = list(self._split())
        self._place = 0

    def parse(self) -> Constraint:
        left = self._sum(0)
        kind, sign = self._next()
        if sign not in _COMPARISONS or kind != "sign":
            raise self._mistake(f"expected one of {' '.join(_COMPARISONS)}, got {sign or 'its end'}; {_FORM}")
        right = self._sum(0)
        _, rest = self._next()
        if rest:
            raise self._mistake(f"expected its end, got {rest}; {_FORM}")
        compare = _COMPARISONS[sign]

        def holds(lookup: Lookup) -> bool:
            return bool(compare(left(lookup), right(lookup)))

        return Constraint(text=self._text, keys=frozenset(self._keys), _holds=holds)

    def _mistake(self, what: str) -> ValueError:
        return ValueError(f"only: {show(self._text)}: {what}")

    def _split(self) -> Iterator[tuple[str, str]]:
        """Yield the kind and the text of each token."""
        place, end = 0, len(self._text.rstrip())
        while place < end:
            found = _TOKEN.match(self._text, place)
            if found is None:
                raise self._mistake(f"cannot read {show(self._text[place:].strip()[:20])}; {_FORM}")
            yield str(found.lastgroup), found[str(found.lastgroup)]
            place = found.end()

    def _next(self) -> tuple[str, str]:
        """Return the kind and the text of the next token, and go behind it. Both are empty at the end."""
        token = self._tokens[self._place] if self._place < len(self._tokens) else ("", "")
        self._place += 1
        return token

    def _chain(self, depth: int, part: Callable[[int], _Node], signs: Mapping[str, Callable[[Any, Any], Any]]) -> _Node:
        """Read parts with signs between them, which are computed from left to right."""
        node = part(depth)
        while True:
            kind, sign = self._next()
            if kind != "sign" or sign not in signs:
                self._place -= 1
                return node
            node = _operation(signs[sign], node, part(depth))

    def _sum(self, depth: int) -> _Node:
        return self._chain(depth, self._product, _SUMS)

    def _product(self, depth: int) -> _Node:
        return self._chain(depth, self._factor, _PRODUCTS)

    def _factor(self, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise self._mistake(f"nested too deeply, expected at most {MAX_DEPTH} levels")
        kind, text = self._next()
        if kind == "number":
            number = float(text) if re.search("[.eE]", text) else int(text)
            return lambda lookup: number
        if kind == "text":
            return lambda lookup: text[1:-1]
        if kind == "key":
            key = self._full_key(text)
            self._keys.add(key)
            return lambda lookup: lookup(key)
        if text == "-":
            inner = self._factor(depth + 1)
            return lambda lookup: -_number(inner(lookup))
        if text == "(":
            inner = self._sum(depth + 1)
            if self._next()[1] != ")":
                raise self._mistake("expected ) for each (")
            return inner
        raise self._mistake(f"expected a number, a text in quotes or a key, got {text or 'its end'}; {_FORM}")

    def _full_key(self, key: str) -> str:
        if key == PARAMETERS or base_key(key) in OPEN_TABLES:
            return key
        known = [one for one in valid_keys() if one not in OPEN_TABLES]
        candidates = [one for one in known if key in (one, one.rpartition(".")[2])]
        if len(candidates) > 1:
            raise self._mistake(f'"{key}" could be {" or ".join(candidates)}; write it in full')
        if not candidates:
            raise self._mistake(f'unknown key "{key}"{nearest_key(key, [*known, PARAMETERS])}')
        return candidates[0]


def _operation(function: Callable[[Any, Any], Any], left: _Node, right: _Node) -> _Node:
    return lambda lookup: function(_number(left(lookup)), _number(right(lookup)))


def _number(value: Any) -> Any:
    """Return a value that is a number.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return value


# -- draws -----------------------------------------------------------------------------------------------------------


def are_met(
    constraints: Sequence[Constraint], values: Mapping[str, Any], config_of_values: Callable[[], RunConfig]
) -> bool:
    """Return whether a draw meets all constraints.

    ``values`` are those of the draw and of the defaults, by dotted key; ``config_of_values`` makes the configuration of
    them, for keys that have a default and for :data:`PARAMETERS`. If they make none, what needs it counts as met: the
    draw is reported like any other wrong run.

    Raises:
        ValueError: one line; as of :meth:`Constraint.holds`, or the number of parameters is not known.
    """
    config: RunConfig | None = None

    def lookup(key: str) -> Any:
        nonlocal config
        if key in values:
            return values[key]
        if config is None:
            try:
                config = config_of_values()
            except ConfigError:
                raise _MissingError from None
        if key == PARAMETERS:
            return _parameters(config)
        found = config.by_key()
        if found.get(key) is None:
            raise _MissingError
        return found[key]

    cheap_first = sorted(constraints, key=lambda constraint: not constraint.keys <= values.keys())
    return all(constraint.holds(lookup) for constraint in cheap_first)


def _parameters(config: RunConfig) -> int:
    if isinstance(config.model, CustomConfig):
        raise ValueError(f"only: {PARAMETERS} of a model of your own are not known yet; use its arguments")
    words = PTB_WORDS if config.data.corpus == "ptb" and config.data.level == "word" else None
    size = config.data.vocab_size or words
    if size is None:
        raise ValueError(f"only: {PARAMETERS} depend on the vocabulary; set data.vocab_size")
    return config.model.parameter_count(size)
