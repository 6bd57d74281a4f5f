"""Checkpoints: what they hold, how one is written and read back, and how they are refused.

A checkpoint is a dictionary of tensors and plain data, so that it loads with ``weights_only=True`` and no code of
the file is ever run. PyTorch writes it as a zip archive and reads it without looking at the archive's checksums. They
are checked here, so that a flipped bit does not go unnoticed.

What a file takes in memory is limited by its size before PyTorch sees it. Its entries have to be stored, since PyTorch
would unpack others, and the pickle in it makes nothing but plain data and tensors.
"""

import hashlib
import io
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor

from seqlm.architectures import CustomConfig, ModelConfig
from seqlm.errors import CheckpointError, DamagedError, FileError
from seqlm.files import Guard, replacing, unguarded
from seqlm.models import LanguageModel, build_model
from seqlm.models.state import State
from seqlm.reading import LARGEST_HASHED, LARGEST_TEXT, open_regular
from seqlm.training.distributed import Rank

FORMAT = "seqlm checkpoint 2"
MOST_PARTS = 4_000_000
"""Most instructions in the pickle of a checkpoint. A token of the vocabulary takes two."""
_GLOBALS = re.compile(
    r"collections \w+|torch \w+|torch\.(storage|nn\.parameter) \w+|torch\.(_utils|_tensor) _rebuild_\w+|"
    r"torch\.serialization _get_layout"
)
"""What the pickle of a checkpoint may name of that which PyTorch allows: not a bytearray, which may have any size."""

Part = TypeVar("Part", "Checkpoint", "Position")


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run stands between two steps: what decides how it goes on, beside parameters and optimizer."""

    epoch: int
    """The epoch under way, from 0."""
    step: int = 0
    """Steps of it that are done."""
    loss_nats: float = 0.0
    """Sum of their losses over all ranks."""
    tokens: int = 0
    """Tokens that they predicted."""
    seconds: float = 0.0
    """Time that they took, over all attempts."""
    states: list[State] = field(default_factory=list)
    """The state of each rank's columns; none at an epoch's start, where it is that of the model's initial state."""
    generators: list[torch.Tensor] = field(default_factory=list)
    """The state of the generator of each rank's device; none at an epoch's start, where the seed decides."""
    cpu_generators: list[torch.Tensor] = field(default_factory=list)
    """That of each rank's CPU. Checkpoints of earlier versions have none."""
    ranks: int = 0
    """Number of ranks that wrote it; 0 where that is not known."""
    device: str = ""
    """Type of their devices, whose generators these are: cpu or cuda."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run between two steps."""

    fingerprint: str
    """Identity of the run that wrote it."""
    corpus_sha256: str
    """Digest of the text that it was trained on."""
    vocabulary: list[str]
    """Token of each id."""
    model: dict[str, torch.Tensor]
    """Parameters."""
    optimizer: dict[str, Any] | None
    """State of the optimizer; none in ``best.pt``, from which nothing goes on."""
    history: list[dict[str, Any]]
    """The record of every finished epoch, as ``metrics.jsonl`` has them."""
    position: Position
    """Where the run goes on."""


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, guard: Guard = unguarded) -> None:
    """Write a checkpoint, with tensors on any device, beside ``path``, read it back, and put it in place in one step.

    After an error, the checkpoint that stood there before stays.

    Raises:
        FileError: it cannot be written, or not be read back.
        LeaseLostError: ``guard`` says that the run is another worker's by now.
    """
    with replacing(path, guard=guard) as temporary:
        try:
            torch.save(_content(checkpoint), temporary)
        except RuntimeError as error:
            # The archive writer of PyTorch reports a full disk as a RuntimeError without the system's reason.
            raise OSError(None, f"the disk is full or failing ({str(error).splitlines()[0][:120]})") from None
        with open_regular(temporary, largest=LARGEST_HASHED) as file:
            if fault := _fault(file):
                raise OSError(None, f"it was damaged right after it was written ({fault}); is the disk failing?")


def _content(checkpoint: Checkpoint) -> dict[str, Any]:
    return {"format": FORMAT, **vars(checkpoint), "position": vars(checkpoint.position)}


def _checkpoint(content: Mapping[str, Any]) -> Checkpoint:
    """Undo :func:`_content`. What earlier versions have written as well is left out."""
    position = _part(Position, {"cpu_generators": [], **content["position"]})
    return _part(Checkpoint, {**content, "position": position})


def _part(kind: type[Part], content: Mapping[str, Any]) -> Part:
    return kind(**{field.name: content[field.name] for field in fields(kind)})


def load_checkpoint(path: Path, fingerprint: str) -> Checkpoint:
    """Read a checkpoint of the run with ``fingerprint``, with all tensors on the CPU.

    Raises:
        DamagedError: truncated, changed, not a checkpoint of ours, or holding anything but tensors and plain data.
        CheckpointError: missing, or of another run.
        FileError: the file cannot be read.
    """
    advice = f"move {path.parent} away to start this run again from its first epoch"
    try:
        with open_regular(path, largest=LARGEST_HASHED) as file:  # one file is checked and read
            if fault := _fault(file) or _fault_of_pickles(file):
                raise DamagedError(f"{path} is truncated, damaged or not a seqlm checkpoint ({fault}); {advice}")
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            content = _loaded(file)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:  # such as one of a shared disk that does not answer: the file may be sound
        raise FileError.from_os_error("read", path, error) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DamagedError(f'{path} is not a seqlm checkpoint of the format "{FORMAT}"; {advice}')
    try:
        checkpoint = _checkpoint(content)
        is_held = _bytes_held(checkpoint.model.values()) <= size
    except (TypeError, KeyError, AttributeError):
        raise DamagedError(f"{path} lacks parts of a seqlm checkpoint; {advice}") from None
    if not is_held:
        raise DamagedError(f"{path} has parameters larger than itself; {advice}")
    if checkpoint.fingerprint != fingerprint:
        raise CheckpointError(
            f"{path} belongs to another run (fingerprint {checkpoint.fingerprint[:8]}, this run has "
            f"{fingerprint[:8]}); {advice}"
        )
    return checkpoint


def _loaded(file: BinaryIO) -> Any:
    """Return the content of a checkpoint; ``None`` if it is another program's. Raises ``OSError``."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251
    except OSError:
        raise
    except Exception:  # many kinds for a malicious file; none says more to a person
        return None


def _fault(file: BinaryIO) -> str | None:
    """Return why a file is no archive of stored parts with the checksums in it. ``None``: it is one.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            parts, size = archive.infolist(), file.seek(0, io.SEEK_END)
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                return "its parts are compressed"
            if min(part.header_offset for part in parts) > 0 or sum(part.file_size for part in parts) > size:
                return "its parts are larger than the file, or do not begin where it does"
            if broken := archive.testzip():
                return f"{broken[:80]!r} has another checksum"
    except OSError:
        raise
    except Exception:  # many kinds, which say no more to a person
        file.seek(0)  # an archive that seems to have no end may be one that cannot be read
        while file.read(2**20):
            pass
        return "no archive"
    return None


def _fault_of_pickles(file: BinaryIO) -> str | None:
    """Return why a pickle in an archive may take more memory than its size allows. ``None``: none may.

    Raises:
        OSError: it cannot be read.
    """
    with zipfile.ZipFile(file) as archive:
        for part in archive.infolist():
            if not part.filename.lower().endswith(".pkl"):
                continue
            if part.file_size > LARGEST_TEXT:
                return f"its pickle has more than {LARGEST_TEXT:,} bytes"
            try:
                for number, (instruction, argument, _) in enumerate(pickletools.genops(archive.read(part))):
                    if number >= MOST_PARTS:
                        return f"its pickle has more than {MOST_PARTS:,} instructions"
                    if instruction.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not _GLOBALS.fullmatch(str(argument)):
                        return f"its pickle names {str(argument)[:80]!r}"
            except OSError:
                raise
            except Exception as error:  # many kinds for a malicious file
                return f"no pickle: {str(error)[:80]}"
    return None


def weights_digest(model: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the parameters and buffers of a model: of their names, types, shapes and bytes.

    It does not depend on the device, nor on the order or strides of the tensors.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.items()):
        content = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {content.dtype} {tuple(content.shape)}\n".encode())
        digest.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shapes(parameters: Mapping[str, Tensor]) -> Iterable[tuple[str, torch.Size]]:
    return sorted((name, tensor.shape) for name, tensor in parameters.items())


def _bytes_held(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages of some tensors, which may share them."""
    dense = [tensor for tensor in tensors if tensor.layout == torch.strided]  # others have no storage of their own
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in dense)}
    return sum(storages.values())


def checkpoint_from_first(rank: Rank, load: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """Return on every rank what ``load`` returns on the first one.

    The first rank sends what it has read: on a shared file system, other ranks may still see an earlier file.

    Raises:
        CheckpointError, FileError: ``load`` raised it on the first rank. Every rank raises it.
    """
    content, failure, error = None, None, None
    if rank.is_first:
        try:
            found = load()
            content = found and _content(found)
        except (CheckpointError, FileError) as caught:
            failure, error = (isinstance(caught, FileError), str(caught)), caught
    content, failure = rank.from_rank(0, (content, failure))
    if failure is not None:
        is_file_error, message = failure
        raise error or (FileError if is_file_error else CheckpointError)(message)
    return content and _checkpoint(content)


def trained_model(path: Path, checkpoint: Checkpoint, model: ModelConfig, seq_len: int, folder: Path) -> LanguageModel:
    """Return the model of a checkpoint on the CPU, dropout off and products in float32. ``path`` is for messages.

    ``folder`` has the files of the user's own model.

    Raises:
        CheckpointError: the checkpoint's parameters are not those of this model.
    """
    wrong = CheckpointError(f"{path} does not hold the parameters of its model")
    size, parameters = len(checkpoint.vocabulary), checkpoint.model
    if not isinstance(model, CustomConfig):  # before it takes any memory
        needed = model.parameter_count(size) * torch.float32.itemsize
        if model.num_layers > len(parameters) or needed > _bytes_held(parameters.values()):
            raise wrong
        with torch.device("meta"):
            planned = build_model(model, size, seq_len).state_dict()
        if [*_shapes(planned)] != [*_shapes(parameters)]:
            raise wrong
    trained = build_model(model, size, seq_len, folder=folder)
    try:
        trained.load_state_dict(parameters)
    except RuntimeError:
        raise wrong from None
    return trained.eval()


def require_text(path: Path, checkpoint: Checkpoint, corpus_sha256: str) -> None:
    """Check that the checkpoint of ``path`` was trained on the text with that digest.

    Raises:
        CheckpointError: on another one.
    """
    if checkpoint.corpus_sha256 != corpus_sha256:
        raise CheckpointError(
            f"{path} was trained on another text (sha256 {checkpoint.corpus_sha256[:12]}, found "
            f"{corpus_sha256[:12]}); give the text that this run began with"
        )
