"""The commands that choose what to train on by other methods than counting: `select`, `embed`.

In: arguments of the command line.
Out: selections of windows, and weights of clusters, as files.
Begin with: select.py.
Heavy libraries: none.
"""
