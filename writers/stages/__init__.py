"""The stages of a write, as tasks over files.

In: options, documents, an engine.
Out: batches of documents, parts of windows and vectors, a tree, sorted runs, shards, tables.
Begin with: in the order of the data: documents.py and batches.py, whole_corpus.py, windows.py, models.py and tree.py,
    runs.py, shards.py, dataset.py.
Heavy libraries: torch (windows.py).
"""
