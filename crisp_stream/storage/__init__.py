"""Reach bytes: local folders and object stores behind one interface.

In: a URL (a folder, s3://, gs://, az://, https://, hf://) and the relative path of an object below it.
Out: bytes, ranges of bytes, open files, listings; objects written whole or not at all.
Begin with: store.py (`Store`, `open_store`), then object_store.py. inputs.py lists files behind globs and prefixes;
    shared_arrays.py maps large tables once for all processes of a machine. Only object_client.py and object_store.py
    know obstore; hub.py knows how the Hugging Face hub is asked.
Heavy libraries: none.
"""
