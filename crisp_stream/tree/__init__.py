"""The clustering tree: to which leaf an embedding belongs.

In: centroids of every node, level by level (fitted in writers/tree), and unit vectors.
Out: the leaf of each vector, by greedy descent from the root (paper, Appendix A).
Begin with: tree.py (`ClusterTree`), then descent.py; families.py scores the children of one node.
Heavy libraries: none.
"""
