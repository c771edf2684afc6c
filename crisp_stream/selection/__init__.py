"""Ways to choose what of a corpus to train on. Each gives a histogram over clusters, or a selection of windows."""

SELECTION_SUFFIX = ".windows.parquet"
"""Of files that hold a selection of windows; other Parquet files are histograms."""
