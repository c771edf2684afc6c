"""Put a finished dataset in its place: whole, or not at all.

In: a request (request.py: what was asked), the root that it claims (claim.py, claimed.py), and the staged files.
Out: the dataset under its root, the manifest last (publish.py); a new generation beside the old one after an append
    (generations.py).
Begin with: request.py, claim.py, publish.py. work.py is the work folder: whose it is, and when it is deleted.
Heavy libraries: none.
"""
