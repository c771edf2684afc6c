"""A request: what a write or an append was asked, as far as it decides bytes.

A dataset keeps the requests that made it (`provenance.requests` of its manifest, one per generation), and a claimed
root that of its owner. So a command that is run again is known, and of another one can be said what differs. Paths of
the machine are not part of it: inputs count by name, size and version, models by their content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

import xxhash

from crisp_stream.errors import InputError
from crisp_stream.storage.inputs import describe_inputs
from crisp_stream.storage.store import is_remote, local_path
from crisp_stream.writers.cleaning.excluded_ids import list_id_files
from crisp_stream.writers.documents.inputs import DocumentSettings, InputFile
from crisp_stream.writers.documents.listing import list_input_files
from crisp_stream.writers.embedding.fitted import FITTED_FILES, fitted_kind
from crisp_stream.writers.embedding.given_models import Models
from crisp_stream.writers.embedding.student import DISTILLED_NAME, is_student
from crisp_stream.writers.engine.tasks import fingerprint
from crisp_stream.writers.engine.versions import FITTING_STAGES, request_libraries
from crisp_stream.writers.options import NEUTRAL, WriteOptions

_NAMED_FILES = 1_000
"""Files of a request that its claim lists; a dataset lists all of them in its table of sources."""
_SHOWN = 3
_BY_CONTENT = ("inputs", "decontaminate", "exclude_ids", "like", "tree", "tokenizer", "encoder", "teacher")
"""Options that are paths: what stands there decides the bytes."""
_OF_DISTILLED = ("teacher_windows",)
"""Options that decide nothing without --encoder distilled."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files behind some inputs."""

    files: int
    bytes: int
    digest: str
    """16 hex digits over name, kind, size and version of each, in reading order."""

    @classmethod
    def of(cls, files: Sequence[InputFile]) -> Self:
        """Sum up a listing."""
        known = [[file.name, file.kind, *_marks(file)] for file in files]
        return cls(files=len(files), bytes=sum(file.num_bytes for file in files), digest=fingerprint(known))


def _marks(file: InputFile) -> list[Any]:
    return [file.num_bytes, file.version, file.signals_version, file.tag, file.shard, file.num_shards]


def listed_as(file: InputFile) -> int:
    """64 bits of what a listing says of a file, but for its name: they differ when its content was replaced."""
    return int(xxhash.xxh3_64_intdigest(repr(_marks(file)).encode()))


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a write or an append was asked."""

    kind: Literal["write", "append"]
    options: dict[str, Any]
    """Options that decide bytes; paths are left out, or stand for their content."""
    inputs: Listing
    evaluation: Listing | None
    """Files of `decontaminate`."""
    excluded: Listing | None
    """Files of `exclude_ids`."""
    libraries: dict[str, str]
    """Versions of the libraries that decide bytes."""
    base: str | None
    """Fingerprint of the dataset that an append grows."""
    listed: dict[str, int] = field(default_factory=dict, compare=False)
    """`listed_as` of input files by name, as far as they are known; not part of the request."""

    @classmethod
    def of(cls, options: WriteOptions, models: Models | None, *, base: str | None = None) -> Self:
        """Make the request of a write; or of an append, with the fingerprint of its base.

        Raises:
            InputError: bad inputs. StorageError: they cannot be listed.
        """
        files = list_input_files(options.inputs, options.documents)
        evaluation = None
        if options.decontaminate:
            evaluation = Listing.of(list_input_files(options.decontaminate, DocumentSettings()))
        excluded = Listing.of(list_id_files(options.exclude_ids)) if options.exclude_ids else None
        without: list[str] = [] if models is None else [*FITTING_STAGES]
        fitted = _fitted(options) if models is None else fitted_kind(models.encoder)
        if fitted == DISTILLED_NAME and options.encoder != DISTILLED_NAME:
            without.append("teacher")
        if options.dedup is None:
            without.append("duplicates")
        return cls(
            kind="write" if base is None else "append",
            options=_deciding(options, models),
            inputs=Listing.of(files),
            evaluation=evaluation,
            excluded=excluded,
            libraries=request_libraries(fitted=fitted, without=without),
            base=base,
            listed={file.name: listed_as(file) for file in files},
        )

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Read a record of `to_json`. Raises InputError: it is none."""
        try:
            known = {one.name: record[one.name] for one in fields(cls) if one.name != "listed"}
            known["inputs"] = Listing(**record["inputs"])
            for name in ("evaluation", "excluded"):
                known[name] = None if record[name] is None else Listing(**record[name])
            return cls(**known, listed=dict(record.get("listed", {})))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"a request must have the keys that `crisp-stream write` gives it, got {error}."
            ) from error

    def to_json(self, *, listed: bool = False) -> dict[str, Any]:
        """As JSON, with its fingerprint; with `listed`, the files are named where they are not too many."""
        record = asdict(self) | {"fingerprint": self.fingerprint}
        if not listed or len(self.listed) > _NAMED_FILES:
            del record["listed"]
        return record

    @property
    def fingerprint(self) -> str:
        """16 hex digits over all of it."""
        return fingerprint(self._asked(), self.libraries, self.base)

    def asks_the_same(self, other: Request) -> bool:
        """Whether both want the same of the same files, on whatever base and with whatever versions of libraries."""
        return self._asked() == other._asked()

    def _asked(self) -> list[Any]:
        others = [None if listing is None else asdict(listing) for listing in (self.evaluation, self.excluded)]
        return [self.kind, self.options, asdict(self.inputs), *others]

    def mark(self, identity: int) -> str:
        """8 hex digits that new files of a generation have in their names: files of one name are of one content.

        `identity` follows from all new windows and the base (`identity_of`). What else gets into the files follows from
        the options, and from names and sizes of the inputs; times do not.
        """
        return fingerprint(identity, self.options, self.inputs.files, self.inputs.bytes, sorted(self.listed))[:8]

    def may_share_files(self, other: Request) -> bool:
        """Whether new files of both may have one mark, so that neither may delete them while the other is at work."""
        mine, theirs = self.inputs, other.inputs
        return (self.options, mine.files, mine.bytes) == (other.options, theirs.files, theirs.bytes)

    def require_read(self, files: Sequence[InputFile]) -> None:
        """Raises InputError: the files that were read are not those of the request."""
        if Listing.of(files) != self.inputs:
            raise InputError(
                "inputs: must stay as they are while they are read, but files were added, removed or changed since the "
                "command began. Run it again when nobody changes them."
            )

    def differences(self, earlier: Request) -> list[str]:
        """What is asked otherwise than in an earlier request: options, inputs and libraries, by name."""
        found = [] if self.kind == earlier.kind else [f"it is {_ARTICLE[self.kind]}, was {_ARTICLE[earlier.kind]}"]
        for name in sorted(self.options.keys() | earlier.options.keys()):
            now, then = self.options.get(name), earlier.options.get(name)
            if now != then:
                found.append(f"{name} is {_shown(now)}, was {_shown(then)}")
        if self.inputs != earlier.inputs:
            found.append(f"inputs: {_files_that_differ(self, earlier)}")
        if self.evaluation != earlier.evaluation:
            found.append(f"decontaminate: {_listing(self.evaluation)}, was {_listing(earlier.evaluation)}")
        if self.excluded != earlier.excluded:
            found.append(f"exclude_ids: {_listing(self.excluded)}, was {_listing(earlier.excluded)}")
        for name in sorted(self.libraries.keys() | earlier.libraries.keys()):
            now, then = self.libraries.get(name), earlier.libraries.get(name)
            if now != then:
                found.append(f"library {name} is {now or 'not needed'}, was {then or 'not needed'}")
        if not found and self.base != earlier.base:
            found.append("the dataset has grown since")
        return found


_ARTICLE = {"write": "a write", "append": "an append"}


def _deciding(options: WriteOptions, models: Models | None) -> dict[str, Any]:
    chosen: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(options).items()
        if name not in NEUTRAL and name not in _BY_CONTENT and name not in _OF_DISTILLED
    }
    if models is None:
        tokenizer = None if options.tokenizer is None else _content_of(options.tokenizer)
        encoder = None if options.encoder is None else _content_of(options.encoder)
        if options.encoder != DISTILLED_NAME:
            return {**chosen, "tokenizer": tokenizer, "encoder": encoder}
        teacher = None if options.teacher is None else _content_of(options.teacher)
        of_distilled = {"teacher": teacher} | {name: getattr(options, name) for name in _OF_DISTILLED}
        return {**chosen, "tokenizer": tokenizer, "encoder": encoder, **of_distilled}
    tokenizer = models.tokenizer / "tokenizer.json"
    of_tokenizer = hashlib.sha256(tokenizer.read_bytes()).hexdigest() if tokenizer.is_file() else None
    given = {"encoder": asdict(models.encoder), "tokenizer": of_tokenizer, "tree": models.tree.fingerprint}
    return {**chosen, **given}


def _fitted(options: WriteOptions) -> str | None:
    if is_student(options.encoder):
        return DISTILLED_NAME
    return options.encoder if options.encoder in FITTED_FILES else None


def _content_of(name: str) -> str:
    """A model by its name alone on the hub; for a local one with a mark that changes with its files."""
    if name in FITTED_FILES or is_remote(name) or not local_path(name).exists():
        return name
    files = [[file.path, file.num_bytes, file.version] for file in describe_inputs(str(local_path(name).absolute()))]
    return f"{Path(name).resolve().name} ({fingerprint(files)[:8]})"


def _shown(value: Any) -> str:
    text = "left out" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listing(listing: Listing | None) -> str:
    return "none" if listing is None else f"{listing.files:,} files of {listing.bytes:,} bytes ({listing.digest[:8]})"


def _files_that_differ(now: Request, then: Request) -> str:
    if not now.listed or not then.listed:
        return f"{_listing(now.inputs)}, was {_listing(then.inputs)}"
    both = now.listed.keys() & then.listed.keys()
    groups = {
        "added": sorted(now.listed.keys() - then.listed.keys()),
        "gone": sorted(then.listed.keys() - now.listed.keys()),
        "changed": sorted(name for name in both if now.listed[name] != then.listed[name]),
    }
    lines = [f"{len(names):,} {what} ({_first(names)})" for what, names in groups.items() if names]
    return ", ".join(lines) or "the same files in another order"


def _first(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:_SHOWN]) + (", …" if len(shown) > _SHOWN else "")
