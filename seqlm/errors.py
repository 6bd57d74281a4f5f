"""Every error that seqlm raises for the world outside it, on one page.

Invariants of our own code are asserted, not raised. The exit codes of a worker, by which the launcher and the jobs
learn how an attempt ended, are in the table below.
"""

import contextlib
import difflib
import errno
import signal
import unicodedata
from collections.abc import Iterable, Iterator
from typing import ClassVar, Self

# Exit codes of a worker. A negative code is the signal that killed it, as in subprocess.

EXIT_FAILED = 1
"""The run failed; ``end.json`` of the attempt has the reason."""
EXIT_USAGE = 2
"""The folder is not a run directory, or a variable is wrong."""
EXIT_STORAGE = 74
"""A file of the run cannot be written or read (EX_IOERR of sysexits.h)."""
EXIT_BUSY = 75
"""Another worker owns the run (EX_TEMPFAIL of sysexits.h)."""
EXIT_RUNG = 79
"""The run has left at a rung of its study's search: it is stopped, or waits for others. Its files say which."""
EXIT_UNPRINTED = 120
"""Python could not flush stdout or stderr; it replaces the worker's own code (documentation of ``sys.exit``)."""
EXIT_STOPPED = 128 + signal.SIGTERM
"""The worker was asked to stop, and has saved: 143."""
EXIT_LOST = -signal.SIGKILL
"""Reported for a rank whose node or host process is gone, since no exit code of its own is known."""

STORAGE_EXITS = (EXIT_STORAGE, EXIT_UNPRINTED)
"""Codes of a worker that could not write its files or its log."""
STOPPED_EXITS = (EXIT_STOPPED, -signal.SIGTERM, -signal.SIGINT)
"""Codes of a worker that was asked to stop. The signals end one that is still importing."""
OWN_SIGNALS = tuple(-number for number in (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV))
"""Codes of a worker that its own program ended by a signal. Libraries abort a rank that has lost another one."""
EXPLAINING_EXITS = (*STORAGE_EXITS, EXIT_BUSY, EXIT_STOPPED, EXIT_RUNG)
"""Codes that name a cause. ``EXIT_FAILED`` may only mean that a rank lost another one."""


class SeqlmError(Exception):
    """An error."""

    exit_code: ClassVar[int] = 1
    """What the command line returns for it."""
    KIND: ClassVar[str] = "error"
    """Its name in the documents of ``--json``, which stays if the class gets another name."""

    @property
    def kind(self) -> str:
        """The kind of error in the documents of ``--json``."""
        return self.KIND


class UsageError(SeqlmError):
    """What the user typed or wrote is wrong."""

    KIND = "usage"
    exit_code = 2


class ProblemsError(UsageError):
    """One input has several problems, one line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


class ConfigError(ProblemsError):
    """A configuration has unknown keys, wrong types or impossible values."""

    KIND = "config"


class ManifestError(ProblemsError):
    """A manifest cannot be read, or entries of it are wrong."""

    KIND = "manifest"


class ModelError(UsageError):
    """The user's own model cannot be used. ``__cause__`` is the error of its code, if there is one."""

    KIND = "model"


class DataError(UsageError):
    """A corpus is missing, empty, damaged, too small, or uses a word outside its vocabulary."""

    KIND = "data"


class DownloadError(DataError):
    """A corpus cannot be downloaded. Further lines say why, and how to get it by hand."""

    KIND = "download"


class RunError(SeqlmError):
    """One run cannot go on."""

    KIND = "run"


class CheckpointError(RunError):
    """A checkpoint is missing, or belongs to another run or text."""

    KIND = "checkpoint"


class DamagedError(CheckpointError):
    """A checkpoint is truncated, changed or not seqlm's. An older one may be usable."""

    KIND = "damaged-checkpoint"


class DivergedError(RunError):
    """The loss or the gradient norm of a step is not finite."""

    KIND = "diverged"


class CanaryError(RunError):
    """Canaries failed, one line each; no run of the grid has started."""

    KIND = "canary"


class SelfCheckError(RunError):
    """A device computes a fused operation wrongly; seqlm does not train on it."""

    KIND = "self-check"


class RunBusyError(RunError):
    """Another live process owns this run or this study."""

    KIND = "busy"


class LeaseLostError(RunError):
    """Another worker took over the run; this one must not change its files."""

    KIND = "lease-lost"


class FileError(SeqlmError):
    """A file cannot be read or written."""

    KIND = "file"
    FULL: ClassVar[str] = "disk-full"
    """Its kind if a disk or a quota is full."""
    errno: int | None = None
    """What the system reported."""

    @property
    def kind(self) -> str:
        return self.FULL if self.errno in (errno.ENOSPC, errno.EDQUOT) else self.KIND

    @classmethod
    def from_os_error(cls, verb: str, path: object, error: OSError) -> Self:
        """One line from an ``OSError``, for example ``cannot write x/y: No space left on device``."""
        found = cls(f"cannot {verb} {path}: {error.strerror or error}")
        found.errno = error.errno
        return found


@contextlib.contextmanager
def file_errors(verb: str, path: object, *, within: bool = False) -> Iterator[None]:
    """Raise a ``FileError`` about ``path`` in place of an ``OSError`` of the block (:meth:`FileError.from_os_error`).

    ``within``: about the file that the error names, if it names one.
    """
    try:
        yield
    except OSError as error:
        raise FileError.from_os_error(verb, (within and error.filename) or path, error) from None


class DamagedFileError(FileError):
    """A file has other content than expected."""

    KIND = "damaged-file"


class UnfitFileError(FileError):
    """A path is no regular file (such as a link or folder), or the file is too large."""

    KIND = "unfit-file"


_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


def is_storage_failure(error: BaseException) -> bool:
    """Whether a file could not be written or read: full disk, quota, read-only or failing file system, stale handle."""
    return isinstance(error, FileError) or (isinstance(error, OSError) and error.errno in _STORAGE)


class BackendError(SeqlmError):
    """The backend cannot be reached, or can never run what was asked."""

    KIND = "backend"
    exit_code = 3


class LostBackendError(BackendError):
    """The backend no longer answers."""

    KIND = "lost-backend"


_JOINERS = "\u200c\u200d"
"""Of the invisible characters those that words are written with."""


def error_text(error: SeqlmError) -> str:
    """An error as lines for a terminal: one, unless it is several problems told at once.

    So a path with a line end in its name cannot make a line of its own.
    """
    several = isinstance(error, ProblemsError | CanaryError | DownloadError | ModelError)
    return "\n".join(printable(line) for line in (str(error).split("\n") if several else [str(error)]))


def printable(text: str) -> str:
    r"""A text with whatever would break a line, or drive a terminal, as an escape: ``\x1b``, ``\n``, ``\u202e``.

    Letters, signs and spaces of any language stay as they are, and so do tabs.
    """
    if text.isprintable():
        return text
    return "".join(c if c == "\t" or _is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


_OTHER_METHODS = frozenset(
    (
        *("adadelta", "adagrad", "adamax", "asgd", "nadam", "radam", "sgdm", "sgdr", "sparse_adam"),
        *("bigru", "birnn", "lstm", "mgu", "qrnn", "transformer_xl", "transformer-xl"),
        *("fp8", "fp16", "fp64"),
    )
)
"""Names of other methods that resemble some of ours. They are no misspellings, so nothing is suggested for them."""


OTHER_WORDS = {
    "arch": "architecture model_type cell rnn_type",
    "attention_keep = 1 - dropout": "attention_dropout attn_dropout attn_pdrop",
    "batch_size": "bs batchsize train_batch_size per_device_train_batch_size",
    "clip_norm": "clip grad_clip clip_grad gradient_clip gradient_clip_val max_grad_norm clip_grad_norm",
    "corpus": "dataset",
    "count": "num_samples n_samples n_trials number",
    "cpus": "threads num_threads num_workers cpus_per_task",
    "embedding_keep = 1 - dropout": "embedding_dropout emb_dropout embd_pdrop dropouti",
    "embedding_size": "embedding_dim embed_dim emb_dim emb_size emsize ninp",
    "epochs": "epoch max_epochs num_epochs n_epochs num_train_epochs steps max_steps num_steps total_steps",
    "gpus": "gpu num_gpus n_gpus devices gres",
    "hidden_size": "hidden hidden_dim nhid d_model n_embd units",
    "keep = 1 - dropout": "dropout drop_rate dropout_rate drop_prob p_drop pdrop resid_pdrop",
    "lr": "learning_rate eta step_size",
    "max_parallel": "jobs n_jobs max_workers",
    "max_stalled_retries": "retries max_retries n_retries",
    "mlp_size": "ff_dim ffn_dim d_ff dim_feedforward intermediate_size",
    "num_heads": "heads nhead n_head n_heads num_attention_heads",
    "num_layers": "layers nlayers n_layer n_layers num_hidden_layers depth",
    "precision": "dtype amp",
    "ranks": "nproc_per_node world_size num_processes",
    "schedule": "scheduler lr_scheduler lr_scheduler_type",
    "seed": "random_seed manual_seed random_state",
    "seq_len": "bptt block_size context context_length context_size sequence_length seq_length max_seq_len",
    "tied": "tie_weights tied_weights tie_embeddings tie_word_embeddings weight_tying",
    "vocab_size": "vocab n_vocab ntoken",
    "warmup_steps": "warmup num_warmup_steps",
    "weight_decay": "wd l2",
    "weight_keep = 1 - dropout": "weight_drop weight_dropout wdrop",
}
"""Last word of a key, and how its value follows if it is another one -> the words of other tools for it."""
_OURS = {other: ours for ours, others in OTHER_WORDS.items() for other in others.split()}


def nearest(name: str, valid: Iterable[str]) -> str:
    """``; did you mean "..."?`` for the closest valid name, or an empty string when none is close."""
    if name.lower() in _OTHER_METHODS:
        return ""
    names = {one.lower(): one for one in valid}
    matches = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return f'; did you mean "{names[matches[0]]}"?' if matches else ""


def nearest_key(key: str, valid: Iterable[str]) -> str:
    """Like :func:`nearest` for a dotted key, by its last word, which may be that of another tool."""
    valid = list(valid)
    found, how = same_key(key, valid)
    if not found:
        last_words = dict.fromkeys(map(_last_word, valid))
        close = difflib.get_close_matches(_last_word(key), last_words, n=1, cutoff=0.55)
        found = _closest(key, [name for name in valid if _last_word(name) in close])
    return f'; did you mean "{found}"{how and f" = {how}"}?' if found else ""


def same_key(key: str, valid: Iterable[str]) -> tuple[str, str]:
    """Return the valid key with the same last word, or with what other tools call so, and how its value follows.

    >>> same_key("dropout", ["model.arch", "model.keep"])
    ('model.keep', '1 - dropout')
    """
    last = _last_word(key)
    for ours in (last, _OURS.get(last, "")):
        word, _, how = ours.partition(" = ")
        names = [name for name in valid if _last_word(name) == word]
        if names:  # "batch_size" is that of train, which stands before eval
            return _closest(key, names) if "." in key else names[0], how
    return "", ""


def _last_word(key: str) -> str:
    """Return the last word of a dotted key or of a flag, as keys are written."""
    return key.rpartition(".")[2].lstrip("-").lower().replace("-", "_")


def _closest(key: str, names: list[str]) -> str:
    return "".join(difflib.get_close_matches(key, names, n=1, cutoff=0))
