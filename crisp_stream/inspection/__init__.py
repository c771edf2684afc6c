"""Look at a dataset: summaries, terms of clusters, texts of windows, verification.

In: an opened dataset or histogram.
Out: text for people, terms and sample texts per node, and a list of everything that does not fit together.
Begin with: summary.py, cluster.py, then verify.py and verify_places.py. window_reading.py reads all windows once, in
    parallel.
Heavy libraries: sklearn (terms.py), where a dataset has not stored its terms.
"""
