"""Fit the clustering tree and say how good it is (paper, Appendix A).

In: embeddings of a sample of windows.
Out: a `ClusterTree`; balance, quantisation error and agreement with another tree.
Begin with: fit_tree.py, balanced_kmeans.py (one node), then quality.py.
    terms.py names the nodes by their text.
Heavy libraries: faiss (balanced_kmeans.py), sklearn (balanced_kmeans.py, terms.py).
"""
