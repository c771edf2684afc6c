"""Records out of one file: lines and arrays of JSON, tables, texts, Web archives; compressed or not.

In: a path or URL of a file.
Out: the number of each record in its file, and its fields or why it is bad; nothing is held but the record at hand.
Begin with: readers.py; delimited.py, json_arrays.py and warc.py hold further kinds, compression.py opens files, and
    bad_record.py is what stands in the place of a record that cannot be used.
Heavy libraries: none.
"""
