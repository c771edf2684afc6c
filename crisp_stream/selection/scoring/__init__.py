"""One number for every window of a dataset, in a score file.

In: a dataset, and what to score by: a measure of the text, the distance to a centroid, a column of the documents, a
    function of the user.
Out: a score file (`histograms/window_scores`).
Begin with: score.py, which scores all windows in parallel; then scorers.py (the kinds of scores), text_measures.py,
    columns.py.
Heavy libraries: none.
"""
