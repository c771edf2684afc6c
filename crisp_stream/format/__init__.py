"""The dataset on disk: FORMAT.md in code.

In: the root of a dataset, or the values to be written below one.
Out: an opened `Dataset` (manifest, cluster table, shard table, tokenizer), and the bytes of every file of the format.
    Everything read is checked before it is used.
Begin with: manifest.py, dataset.py, then tables.py, mds.py (the bytes of a shard) and checksums.py (bytes and place of
    a window). parquet.py is the only way in which Parquet tables are read; provenance.py says which documents a window
    came from.
Heavy libraries: none.
"""
