"""Which clusters to train on, and in which proportions.

In: counts of a task's windows per cluster (from counting/), saved histograms, selections of windows.
Out: a `Histogram` over one level of the tree, smoothed, tuned, cut or averaged; a `Mixture` of phases.
Begin with: histogram.py, then mixture.py (phases and limits of repeats). arithmetic.py compares and weights;
    smoothing.py and tuning.py serve small tasks, chance.py says what sampling alone makes of one;
    window_selection.py holds single windows.
Heavy libraries: none.
"""
