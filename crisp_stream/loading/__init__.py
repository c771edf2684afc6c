"""Window ids to batches: the streaming loader.

In: a dataset root, a `Mixture`, a seed, and the place of this process among ranks and workers.
Out: verified windows as torch batches, in the exact order of order/, resumable at any sample.
Begin with: mixture_dataset.py (`MixtureDataset`), loader.py (its DataLoader), stream.py (the mixture over time),
    serving.py (one iteration in one process), reader.py (bytes; expected.py: what they must be). runs.py and
    run_cache.py decide what is fetched together and kept; control.py and slots.py join DataLoader workers to their
    parent; mds_streams.py serves users of plain mosaicml-streaming.
Heavy libraries: streaming (mds_streams.py), torch (batches.py, loader.py, mixture_dataset.py, topology.py).
"""
