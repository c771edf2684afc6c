"""Ways to choose what of a corpus to train on. Each gives a histogram over clusters, or a selection of windows."""
