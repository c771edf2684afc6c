"""Text to unit vectors with a sentence encoder (the paper's SBERT MiniLM, Appendix A Table 6).

all-MiniLM-L6-v2 reads only the first 256 word pieces of a text; a window of 1,024 tokens is therefore placed in the
tree by its beginning. That is the paper's setting and the default; `reads="all"` takes the mean over the whole window
instead, at about four times the cost (docs/write/embedding.md compares them). The manifest records both, because
specialist examples must be embedded the same way.

The forward pass calls the model's modules on ids that are tokenised already (`pieces.py`). Batches hold sequences of
similar length and depend only on the pieces given, and torch runs on one thread per process, so the vectors of a part
do not depend on how many processes share the work. Small batches suit a CPU: 14.3 windows/s per core at 8 x 256 word
pieces against 12.5 at 32 x 256, because activations stay in its cache; a GPU needs large ones. Arithmetic is float32
everywhere: a part may be embedded on either.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError, import_extra
from crisp_stream.format.manifest import EncoderRecord, Reads
from crisp_stream.hashing import file_sha256
from crisp_stream.models.progress_bars import without_progress_bars
from crisp_stream.processes import report_units
from crisp_stream.writers.embedding.encoder_digest import (
    Parts,
    digest_of,
    encoder_parts,
    first_module_file,
    is_static,
    parts_that_differ,
    shipped_max_length,
)
from crisp_stream.writers.embedding.encoder_files import (
    DEFAULT_ENCODER,
    DEFAULT_WEIGHTS_SHA256,
    prompt_of,
    read_settings,
    resolve_encoder,
    weights_files,
)
from crisp_stream.writers.embedding.fitted import FITTED_FILES, FITTED_FOLDER, fitted_folder, fitted_kind, load_fitted
from crisp_stream.writers.embedding.pieces import (
    Batch,
    FastSplitter,
    Pieces,
    SlowSplitter,
    TextSplitter,
    pad_batches,
    says_everything,
    unit_vectors,
)
from crisp_stream.writers.embedding.probe import Probe, ProbedEncoder, encoder_file_of
from crisp_stream.writers.embedding.static import StaticEncoder
from crisp_stream.writers.embedding.text_encoder import TextEncoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CPU_BATCH_PIECES = 2048
CUDA_BATCH_PIECES = 1 << 16
_LONGEST = 1 << 20
_PROBES = ["Probe: A Naïve CAFÉ, isn't it? 中文 <s> [SEP] 🙂", "  lower UPPER\tİstanbul ﬁ Ǆ 1,234.5 e\u0301 \n\n", ""]


class Encoder:
    """A sentence encoder with known weights."""

    def __init__(
        self,
        name: str | None = None,
        *,
        max_length: int | None = None,
        reads: Reads = "first",
        prompt: str | None = None,
        device: str | None = None,
    ) -> None:
        """Args:
            name: folder or hub name; None is all-MiniLM-L6-v2, from its offline package when that is installed.
            max_length: word pieces read at once, special tokens included; None is what the encoder ships with.
            reads: first, or all for the mean over the whole text, read in stretches of max_length.
            prompt: stands before every text; None is what the encoder ships with, nearly always nothing.
            device: such as "cpu" or "cuda:1"; None takes CUDA when there is one.

        Raises:
            InputError: no such encoder, no weights file in it, or weights that are not the published ones of the
            default. MissingExtraError: sentence-transformers is not installed.
        """
        if max_length is not None and max_length < 1:
            raise InputError(f"encoder max_length: must be at least 1 word piece, got {max_length}.")
        if reads not in get_args(Reads):
            raise InputError(f"encoder reads: must be first or all, got {reads!r}.")
        self._source, self.name = resolve_encoder(name)
        self._max_length = max_length
        self.reads: Reads = reads
        self._prompt_given = prompt
        self._device = device

    @cached_property
    def _weights_files(self) -> list[Path]:
        """The first module's; for the default those that were published. Raises InputError."""
        files = weights_files(self._source, first_module_file(self._source, ""))
        if self.name == DEFAULT_ENCODER and (digest := file_sha256(files[0])) != DEFAULT_WEIGHTS_SHA256:
            raise InputError(
                f"{self.name}: the weights must have sha256 {DEFAULT_WEIGHTS_SHA256[:12]}…, got {digest[:12]}…. "
                f"Remove the damaged copy at {self._source} and load it again; for other weights pass their folder."
            )
        return files

    @cached_property
    def weights_sha256(self) -> str:
        """Hex digest of everything that decides the vectors. Raises InputError."""
        return digest_of(self.parts)

    @cached_property
    def parts(self) -> Parts:
        """What decides the vectors, by part; `weights_sha256` is over it. Raises InputError."""
        _ = self._weights_files
        return encoder_parts(self._source, max_length=self.max_length, reads=self.reads, prompt=self._prompt)

    @cached_property
    def max_length(self) -> int:
        """Word pieces read at once, special tokens included; read without loading the model where its files say it."""
        shipped = self._max_length or shipped_max_length(self._source)
        length = int(shipped or self._loaded.max_seq_length or _LONGEST + 1)
        if length > _LONGEST:
            raise InputError(f"encoder {self.name}: states no greatest length. Pass max_length, such as 512.")
        return length

    @cached_property
    def _prompt(self) -> str:
        """Prefix of every text: the one that was asked for, else the one that the model ships with."""
        return prompt_of(self._source) if self._prompt_given is None else self._prompt_given

    @cached_property
    def _loaded(self) -> SentenceTransformer:
        """The model as it ships, in float32 also where its files hold another type, which transformers 5 would keep."""
        library = import_extra("sentence_transformers", extra="write", purpose="embedding text")
        _ = self._weights_files
        local = Path(self._source).is_dir()
        try:
            with without_progress_bars():
                model = library.SentenceTransformer(self._source, device=self._device, local_files_only=local)
        except Exception as error:  # the library raises what it meets: of weights, of torch, of JSON
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise InputError(
                f"encoder {self._source}: must be a sentence-transformers model that can be loaded, got: {reason}. "
                "Check the name and its files."
            ) from error
        return model.float().eval()

    @cached_property
    def model(self) -> SentenceTransformer:
        """The model, checked: it reads exactly what `pieces` makes. Raises InputError."""
        model: Any = self._loaded
        positions = getattr(model[0].auto_model.config, "max_position_embeddings", None) or -1
        if 0 < positions < self.max_length:
            raise InputError(
                f"encoder max_length: {self.name} has {positions} positions, got {self.max_length}. "
                "Choose fewer word pieces, or read all of a window in stretches."
            )
        if self._prompt and not all(getattr(module, "include_prompt", True) for module in model):
            raise InputError(f"encoder {self.name}: its pooling leaves out its prompt, which is not supported.")
        model.max_seq_length = self.max_length
        expected = model.tokenizer([self._prompt + probe for probe in _PROBES], truncation=True)["input_ids"]
        actual = [next(iter(sequences)) for sequences in self._splitter.sequences(_PROBES)]
        if expected != actual:
            raise InputError(
                f"encoder {self.name}: tokenizer.json must give the ids of its AutoTokenizer, got others. "
                "Load it with transformers.AutoTokenizer and save_pretrained it to the encoder's folder."
            )
        return model

    @cached_property
    def _splitter(self) -> TextSplitter:
        """tokenizer.json alone where it says everything, else the tokenizer as the model loads it."""
        content = self._settings("tokenizer.json")
        lowers = self._settings("sentence_bert_config.json").get("do_lower_case")
        if content and not lowers and says_everything(content, self._settings("tokenizer_config.json")):
            library: Any = import_extra("tokenizers", extra="write", purpose="embedding text")
            tokenizer = library.Tokenizer.from_str(json.dumps(content))
        else:
            loaded: Any = self._loaded.tokenizer
            if not loaded.is_fast:
                return SlowSplitter(loaded, max_length=self.max_length, reads=self.reads, prompt=self._prompt)
            tokenizer = type(loaded.backend_tokenizer).from_str(loaded.backend_tokenizer.to_str())
        return FastSplitter(tokenizer, max_length=self.max_length, reads=self.reads, prompt=self._prompt)

    def _settings(self, name: str) -> dict[str, Any]:
        return read_settings(self._source, first_module_file(self._source, name))

    def record(self) -> EncoderRecord:
        """The encoder's entry in the manifest."""
        return self._record

    @cached_property
    def _record(self) -> EncoderRecord:
        model: Any = self.model
        return EncoderRecord(
            name=self.name,
            weights_sha256=self.weights_sha256,
            max_length=self.max_length,
            pooling=next(filter(None, map(_pooling_mode, model)), "none"),
            dim=self.embed(["width"]).shape[1],
            reads=self.reads,
            prompt=self._prompt,
        )

    def pieces(self, texts: Sequence[str]) -> Pieces:
        """Tokenise on one core; loads neither torch nor the weights.

        Raises:
            InputError: max_length leaves no place beside the special tokens.
        """
        return Pieces.from_sequences(self._splitter.sequences(texts), self._splitter.vocab_size)

    def batches(self, pieces: Pieces) -> Iterator[Batch]:
        """Sort sequences by length and pad them in batches; a function of the pieces and the kind of device alone."""
        model: Any = self.model
        budget = CPU_BATCH_PIECES if model.device.type == "cpu" else CUDA_BATCH_PIECES
        tokenizer = model.tokenizer
        return pad_batches(pieces, budget, pad_id=tokenizer.pad_token_id or 0, left=tokenizer.padding_side == "left")

    def sequence_vectors(self, pieces: Pieces) -> NDArray[np.float32]:
        """The model's vector of each sequence, not normalised: [num_sequences, dim]. At least one sequence."""
        import torch

        model: Any = self.model
        device = model.device
        modules = list(model)
        while type(modules[-1]).__name__ == "Normalize":  # stretches are averaged before they are normalised
            modules.pop()
        names = model.tokenizer.model_input_names
        outputs: list[torch.Tensor] = []
        rows: list[NDArray[np.int64]] = []
        sequences_done = texts_done = 0
        with torch.inference_mode(), _one_torch_thread() if device.type == "cpu" else contextlib.nullcontext():
            for batch in self.batches(pieces):
                ids = _to_device(batch.ids, device).long()
                from_start = torch.arange(ids.shape[1], device=device)
                if model.tokenizer.padding_side == "left":
                    from_start = from_start.flip(0)
                mask = (from_start < _to_device(batch.lengths, device)[:, None]).long()
                features: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
                if "token_type_ids" in names:
                    features["token_type_ids"] = torch.zeros_like(ids)
                for module in modules:
                    features = module(features)
                outputs.append(features["sentence_embedding"].float())
                rows.append(batch.rows)
                sequences_done += len(batch.rows)
                done = sequences_done * len(pieces) // len(pieces.lengths)
                report_units(done - texts_done)
                texts_done = done
            by_batch = torch.cat(outputs).cpu().numpy()
        vectors = np.empty_like(by_batch)
        vectors[np.concatenate(rows)] = by_batch
        return vectors

    def embed_pieces(self, pieces: Pieces) -> NDArray[np.float16]:
        """Embed what `pieces` of an equal encoder made: [num_texts, dim], L2 norm 1 up to float16 rounding."""
        if not len(pieces):
            return np.zeros((0, self.record().dim), np.float16)
        return unit_vectors(self.sequence_vectors(pieces), pieces.lengths, pieces.sequences_per_text)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float16]:
        """`pieces` and `embed_pieces`: with reads="first", what lies beyond max_length word pieces is not read."""
        return self.embed_pieces(self.pieces(texts))


@dataclass(frozen=True, kw_only=True)
class EncoderChoice:
    """The encoder that a worker process opens; hashable and small, so tasks can carry it."""

    name: str | None = None
    """Folder or hub name, None for all-MiniLM-L6-v2; the folder of its files for a fitted one."""
    max_length: int | None = None
    """Word pieces read at once; None is what the encoder ships with."""
    reads: Reads = "first"
    prompt: str | None = None
    """Stands before every text; None is what the encoder ships with."""
    fitted: str | None = None
    """lsi or distilled, where a write fitted it."""
    probe: Probe | None = None
    """Vectors that it must give; None where nothing was embedded by it yet."""

    def open(self, *, device: str | None = None) -> TextEncoder:
        """The encoder; a neural one is loaded when it is used, and then compared with its probe.

        Raises:
            InputError, FormatError, MissingExtraError.
        """
        opened = self._opened(device)
        return opened if self.probe is None else ProbedEncoder(opened, self.probe)

    def _opened(self, device: str | None) -> TextEncoder:
        if self.fitted is not None:
            return load_fitted(self.fitted, Path(self.name or "."))
        if self.is_static:
            return StaticEncoder(self.name or "", max_length=self.max_length, reads=self.reads, prompt=self.prompt)
        return Encoder(self.name, max_length=self.max_length, reads=self.reads, prompt=self.prompt, device=device)

    @property
    def is_static(self) -> bool:
        """True where it is a table of vectors. Raises InputError."""
        return self.fitted is None and is_static(resolve_encoder(self.name)[0])

    @property
    def is_light(self) -> bool:
        """True where no network is run: a fitted or a static encoder. Raises InputError."""
        return self.fitted is not None or self.is_static


def matching_encoder(record: EncoderRecord, name: str | None, root: str) -> EncoderChoice:
    """The encoder whose vectors agree with those of an existing dataset.

    Args:
        record: of the dataset's manifest.
        name: folder or hub name where it is now; None is the recorded name, or the dataset's files where a write
            fitted it.
        root: of the dataset.

    Raises:
        InputError: its weights or settings are not the recorded ones. That its vectors are is compared when it is used.
        FormatError: what the dataset keeps of its encoder is missing or broken: its probe, the files of a fitted one.
        StorageError: the storage refused or failed.
    """
    kept = encoder_file_of(root, record)
    kind = fitted_kind(record)
    if name in FITTED_FILES and name != kind:
        raise InputError(
            f"encoder {name}: must be the one that embedded {root} ({record.name}), got one that is fitted anew. Leave "
            "--encoder out."
        )
    if kind is not None:
        folder = str(fitted_folder(root, kind, record.weights_sha256)) if name in (None, kind) else name
        choice = EncoderChoice(name=folder, fitted=kind)
        remedy = f"Restore {root}/{FITTED_FOLDER}, or pass a copy's folder"
    else:
        choice = EncoderChoice(
            name=name or record.name, max_length=record.max_length or None, reads=record.reads, prompt=record.prompt
        )
        remedy = f"Pass the folder or hub name of {record.name} as the encoder"
    encoder = choice.open()
    if encoder.weights_sha256 != record.weights_sha256:
        differing = ", ".join(parts_that_differ(encoder.parts, kept.parts)) or "the digest over all of it"
        raise InputError(
            f"encoder {choice.name}: must be the one that embedded {root}, got another one; what differs: "
            f"{differing}. {remedy}."
        )
    return replace(choice, probe=Probe(kept=kept, encoder=str(name or record.name), root=root))


def _to_device(array: NDArray[Any], device: Any) -> Any:
    import torch

    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _pooling_mode(module: Any) -> str | None:
    """The mode of a pooling module, such as mean; its attribute changed its name within version 5 of the library."""
    mode = getattr(module, "pooling_mode", None)
    if mode is None and hasattr(module, "get_pooling_mode_str"):
        mode = module.get_pooling_mode_str()
    return mode if mode is None or isinstance(mode, str) else "+".join(mode)


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
