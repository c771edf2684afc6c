"""Documents out of files.

In: paths, folders, globs, s3:// prefixes, hf:// names; settings of fields, filters and sampling.
Out: documents in a fixed order, each with its place; counts of what was left out, by reason.
Begin with: documents.py, listing.py (which files), readers.py (records of one file; delimited.py, json_arrays.py and
    warc.py hold further kinds, compression.py opens them); redpajama.py and hub.py are layouts.
Heavy libraries: none.
"""
