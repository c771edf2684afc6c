"""Window ids to batches: the streaming loader.

In: a dataset root, a `Mixture`, a seed, and the place of this process among ranks and workers.
Out: verified windows as torch batches, in the exact order of order/, resumable at any sample.
Begin with: mixture_dataset.py (`MixtureDataset`), stream.py (the mixture over time), reader.py (bytes). runs.py and
    run_cache.py decide what is fetched together and kept; ring.py and control.py join DataLoader workers to their
    parent; mds_streams.py serves users of plain mosaicml-streaming.
Heavy libraries: streaming (mds_streams.py), torch (batches.py, mixture_dataset.py, topology.py).
"""
