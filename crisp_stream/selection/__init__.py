"""Choosing windows: by scores, and by the rivals of a task's histogram.

In: a dataset, embeddings of its windows, scores of its windows (scoring/ makes them), examples of a task.
Out: a selection of windows (a condition, tiers, classifier, nearest neighbours, DSIR) or a histogram (doge/).
Begin with: where.py and conditions.py, tiers.py; of the rivals scores.py (from scores to a selection), then
    classifier.py, nearest.py or dsir.py. embed_windows.py embeds all windows of a dataset that exists.
Heavy libraries: sklearn (classifier.py).
"""
