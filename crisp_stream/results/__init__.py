"""Saved results to tables and figures. No model is loaded.

In: files of results: the loss of every text, the answer to every question.
Out: figures with intervals over examples, comparisons of models, curves over a training, costs, distances.
Begin with: results.py (what is saved), pairing.py (what may be compared), tables.py. estimates.py and bootstrap.py
    make the intervals.
Heavy libraries: none.
"""
