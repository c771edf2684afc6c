"""The rival methods: other ways to choose what of a corpus to train on.

In: a dataset, embeddings of its windows, examples of a task.
Out: a selection of windows (classifier, nearest neighbours, DSIR) or a histogram (doge/).
Begin with: scores.py (from scores to a selection), then classifier.py, nearest.py or dsir.py. embed_windows.py embeds
    all windows of a dataset that exists.
Heavy libraries: sklearn (classifier.py).
"""
