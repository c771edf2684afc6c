"""Put a finished dataset in its place: whole, or not at all.

In: a staged dataset and the root where it goes.
Out: the dataset under its root, the manifest last; a new generation beside the old one after an append.
Begin with: publish.py, generations.py, work.py (the work folder: whose it is, and when it is deleted).
Heavy libraries: none.
"""
