"""What a run will read, before it is started.

In: a dataset, a mixture, the length of the run, and how many nodes, ranks and workers read it.
Out: repeats of windows per cluster, bytes and requests, the error of the mixture, advice.
Begin with: forecast.py, then counts.py (how often windows are served) and reads.py (which requests that makes).
    result.py holds the dataclasses.
Heavy libraries: none.
"""
