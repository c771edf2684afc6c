"""Work on a root under its claim, from the first look at the root to the last file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from crisp_stream.errors import CrispError, InputError
from crisp_stream.format.dataset import open_dataset
from crisp_stream.format.manifest import MANIFEST, Manifest
from crisp_stream.format.provenance import has_provenance, source_listings
from crisp_stream.processes import Log
from crisp_stream.storage.store import Store, open_store
from crisp_stream.writers.options import WriteOptions
from crisp_stream.writers.publishing.claim import (
    Hold,
    claim_root,
    clear,
    missing_folders,
    remove_folders,
    requests_of,
)
from crisp_stream.writers.publishing.publish import dataset_files, delete_temporaries
from crisp_stream.writers.publishing.request import Request


@contextlib.contextmanager
def claimed(
    options: WriteOptions, request: Request, log: Log, *, forget: Callable[[], object] | None = None
) -> Iterator[Hold]:
    """Claim the root of a command for the block. The claim ends with it; after a failure, if nothing was put there.

    `forget` is called where files of another writer were deleted: all files are to be put anew.

    Raises:
        InputError: another request has claimed the root. StorageError: it cannot be written to.
    """
    store = open_store(options.out)
    made = missing_folders(store)
    hold, token = claim_root(store, request, take_over=options.take_over, log=log)
    try:
        clear(store, hold, dataset_files, forget)
        yield hold
    except BaseException:
        with contextlib.suppress(CrispError):  # the failure itself is told
            hold.release(failed=True, token=token)
        remove_folders(made)
        raise
    delete_temporaries(store)
    hold.release()


def require_same(store: Store, manifest: Manifest, request: Request) -> None:
    """Raises InputError: a root holds a dataset that another write made; the message says what differs."""
    made = requests_of(manifest)
    if made and made[0] is not None and made[0].fingerprint == request.fingerprint:
        return
    differs = ""
    if made and made[0] is not None:
        then = replace(made[0], listed=_listed(store, made[0]))
        differs = f" of another request. This one differs: {'; '.join(request.differences(then))}"
    raise InputError(
        f"{store.url}: the output root must not hold a dataset, but it has a {MANIFEST}{differs}. "
        "Choose another --out, or delete the old dataset first."
    )


def _listed(store: Store, request: Request) -> dict[str, int]:
    """The first files of a dataset, as its table of sources has them; empty where it does not say."""
    with contextlib.suppress(CrispError):
        dataset = open_dataset(store.url)
        if has_provenance(dataset):
            return dict(source_listings(dataset)[: request.inputs.files])
    return {}
