"""Which documents to leave out: duplicates, near-duplicates, text of evaluation sets, ids of a list.

In: texts of documents, in batches.
Out: removals with their reason and the document or example that they repeat.
Begin with: duplicates.py, near_duplicates.py, decontamination.py. words.py hashes words; array_files.py reads
    stretches of arrays; dropped.py writes the list.
Heavy libraries: none.
"""
