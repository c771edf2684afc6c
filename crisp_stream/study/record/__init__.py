"""The record of a study: all that its tables and figures need, without a model.

In: finished jobs.
Out: one JSON file and one Parquet file, checked when they are read.
Begin with: values.py (the dataclasses), record.py, files.py (how they stand on disk), gather.py (from jobs to a
    record).
Heavy libraries: none.
"""
