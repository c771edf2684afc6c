"""Documents in, shards out: the offline side.

In: files of documents; options of `crisp-stream write`.
Out: a dataset: MDS shards sorted by leaf, tables, tree, tokenizer, manifest.
Begin with: write.py and append.py, then stages/ (what is done in which order) and engine/ (how tasks run and are
    resumed). windows.py cuts text into windows; options.py holds every option with its default. estimate.py says
    beforehand what a write will take.
Heavy libraries: transformers (given_tokenizer.py).
"""

if __name__ == "writers":
    raise ImportError("Import this package as crisp_stream.writers; a top-level `writers` is not what gets installed.")
