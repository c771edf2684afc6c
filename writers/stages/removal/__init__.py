"""The stages that find duplicates among all documents, and list what is removed.

In: hashes and sketches of documents, by groups.
Out: what is removed of each stretch of documents, and the published list.
Begin with: duplicates.py, whose head has the order of its stages. bundles.py parts documents into tasks; dropped.py
    makes the list.
Heavy libraries: none.
"""
