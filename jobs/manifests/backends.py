"""The keys of ``[backend.*]``: one table for each backend, with what is valid for each key.

The only place that knows them. A manifest is checked against it when it is loaded (:mod:`jobs.manifests.entries`), a
site file of SLURM when it is read (:mod:`slurm.settings`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from jobs.manifests.problems import Problems
from jobs.manifests.reader import show
from jobs.manifests.sbatch import EITHER, FLAGS, OPTIONS, OURS
from seqlm.errors import nearest

Check: TypeAlias = Callable[[str, Any], Iterator[str]]
"""Full name of a key and its value -> a line for each thing that is wrong with it."""

MAX_SIGNAL_S = 65_535
"""The longest warning that SLURM can give."""

MAIL_TYPES = (
    *("NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT", "ARRAY_TASKS"),
    *("TIME_LIMIT", "TIME_LIMIT_90", "TIME_LIMIT_80", "TIME_LIMIT_50"),
)


def option_name(key: str) -> str:
    """An option of sbatch as sbatch writes it; in a table underscores are as good as hyphens."""
    return key.replace("_", "-")


# -- checks ----------------------------------------------------------------------------------------------------------


def _valid_if(fits: Callable[[Any], bool], valid: str) -> Check:
    def check(name: str, value: Any) -> Iterator[str]:
        if not fits(value):
            yield f"{name}: found {show(value)}, valid is {valid}"

    return check


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_word(value: Any) -> bool:
    return _is_line(value) and not any(letter.isspace() for letter in value)


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _is_variable(name: Any) -> bool:
    return isinstance(name, str) and _VARIABLE.fullmatch(name) is not None


def _variables(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for text in value.values()):
        yield f'{name}: found {show(value)}, valid is a table of texts, such as {{NCCL_SOCKET_IFNAME = "eth0"}}'
        return
    for key, text in value.items():
        if not _is_variable(key):
            yield f"{name}: found the variable {show(key)}, valid are letters, digits and underscores"
        if "\0" in text:
            yield f"{name}.{key}: found {show(text)}, valid is a text without NUL"


def _variable_names(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, list) or not all(map(_is_variable, value)):
        yield f'{name}: found {show(value)}, valid is a list of names of variables, such as ["HF_TOKEN"]'


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _at_least(least: int, most: int | None = None) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value and (most is None or value <= most)


def _lines(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, list) or not all(_is_line(line) for line in value):
        yield f"{name}: found {show(value)}, valid is a list of texts, each one line"


def _setup(name: str, value: Any) -> Iterator[str]:
    yield from _lines(name, value)
    for line in value if isinstance(value, list) else ():
        if isinstance(line, str) and line.lstrip().startswith("#SBATCH"):
            yield f"{name}: found {show(line)}, valid are shell commands; options stand in sbatch"


def _mail_type(name: str, value: Any) -> Iterator[str]:
    if not _is_word(value):
        yield f'{name}: found {show(value)}, valid is a text such as "END,FAIL"'
        return
    for word in value.split(","):
        if word.upper() not in MAIL_TYPES:
            hint = nearest(word.upper(), MAIL_TYPES)
            yield f"{name}: found {show(word)}, valid is one or more of {', '.join(MAIL_TYPES)}{hint}"


def _sbatch(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{name}: found {show(value)}, valid is a table of options of sbatch"
        return
    given: dict[str, str] = {}
    for key, found in value.items():
        option = option_name(key)
        if option in given:
            yield f'{name}: option "{option}" is given twice, as "{given[option]}" and "{key}"'
        given[option] = key
        yield from _sbatch_option(f"{name}.{key}", option, found)


def _sbatch_option(name: str, option: str, value: Any) -> Iterator[str]:
    number_or_text = "a text of one line or a number"
    if option not in OPTIONS:
        prefix = name.rpartition(".")[0]
        hint = nearest(option, sorted(OPTIONS - OURS.keys())).replace('"', f'"{prefix}.', 1)
        yield f'unknown key "{name}"{hint} (valid in {prefix}: the long options that `sbatch --help` lists)'
    elif option in OURS:
        yield f'{name}: found "{option}", which seqlm gives to sbatch itself; {OURS[option]}'
    elif option in FLAGS:
        yield from _valid_if(lambda found: found is True, "true, since the option takes no value")(name, value)
    elif option in EITHER:
        yield from _valid_if(lambda found: found is True or _is_value(found), f"true, {number_or_text}")(name, value)
    else:
        yield from _valid_if(_is_value, number_or_text)(name, value)


def _is_value(value: Any) -> bool:
    return _is_line(value) or _is_number(value)


# -- the tables ------------------------------------------------------------------------------------------------------

_LINE = _valid_if(_is_line, "a text of one line")
_POSITIVE = _valid_if(_at_least(1), "a positive whole number")

_COMMON: dict[str, Check] = {
    "max_parallel": _POSITIVE,
    "retries": _valid_if(_at_least(0), "a whole number, 0 or more"),
    "env": _variables,
    "env_pass": _variable_names,
    "progress_s": _valid_if(lambda value: _is_number(value) and value > 0, "a number of seconds above 0"),
}

BACKENDS: dict[str, dict[str, Check]] = {
    "local": _COMMON,
    "ray": {
        **_COMMON,
        "address": _valid_if(lambda value: isinstance(value, str) and bool(value), 'an address, such as "auto"'),
    },
    "slurm": {
        **_COMMON,
        "partition": _valid_if(_is_word, "a partition's name, or several with commas between"),
        "account": _valid_if(_is_word, "an account's name"),
        "qos": _valid_if(_is_word, "the name of a quality of service"),
        "constraint": _LINE,
        "reservation": _valid_if(_is_word, "a reservation's name"),
        "nodelist": _valid_if(_is_word, 'a list of nodes, such as "node[01-04],node09"'),
        "exclude": _valid_if(_is_word, 'a list of nodes, such as "node[01-04],node09"'),
        "timeout_min": _POSITIVE,
        "mem_gb": _valid_if(lambda value: _is_number(value) and value > 0, "a number above 0"),
        "ranks_per_node": _POSITIVE,
        "signal_before_s": _valid_if(_at_least(1, MAX_SIGNAL_S), f"a whole number from 1 to {MAX_SIGNAL_S}"),
        "mail_user": _valid_if(_is_word, "a mail address or a user's name"),
        "mail_type": _mail_type,
        "setup": _setup,
        "srun_args": _lines,
        "python": _valid_if(_is_line, 'a command that starts Python, such as "apptainer exec image.sif python"'),
        "sbatch": _sbatch,
    },
}
"""Backend -> its keys, each with its check."""


def check_table(backend: str, table: Mapping[str, Any], where: str, problems: Problems, *, prefix: str) -> None:
    """Check one backend's table; ``prefix`` is how its keys are called in the file, such as ``backend.ray.``."""
    keys = BACKENDS[backend]
    for key, value in table.items():
        name = f"{prefix}{key}"
        if key in keys:
            for line in keys[key](name, value):
                problems.add(where, line)
        elif backend == "slurm" and option_name(key) in OPTIONS:
            option = option_name(key)
            instead = OURS.get(option, f"write {prefix}sbatch.{key}")
            problems.add(where, f'unknown key "{name}": an option of sbatch; {instead}')
        else:
            valid = [f"{prefix}{known}" for known in keys]
            if prefix:
                others = {other: its for other, its in BACKENDS.items() if other != backend}
                valid += [f"backend.{other}.{known}" for other, its in others.items() for known in its]
            problems.unknown(where, name, valid)
