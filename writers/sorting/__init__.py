"""Ranges of sort keys, and the windows of one in their order.

In: sorted runs of windows, and the shards of a dataset that grows.
Out: ranges of about 4 GB of tokens; the tokens, places or embeddings of the windows of a range, in order.
Begin with: ranges.py, range_windows.py; key_sources.py reads what they sort.
Heavy libraries: none.
"""
