"""Documents out of files.

In: paths, folders, globs, s3:// prefixes, hf:// names; settings of fields, filters and sampling.
Out: documents in a fixed order, each with its place; counts of what was left out, by reason.
Begin with: documents.py, listing.py (which files), fields.py and filters.py; redpajama.py and hub.py are layouts. The
    records of one file are read below, in crisp_stream/records/.
Heavy libraries: none.
"""
