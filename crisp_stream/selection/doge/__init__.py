"""DoGE: weights of clusters learnt by a proxy model (Fan et al. 2023).

In: a recipe of the proxy, a dataset, text of the task.
Out: a histogram over the clusters of one level, and its course over the run.
Begin with: doge.py, doge_run.py (the loop), domain_gradients.py (inner products with the target's gradient in
    O(parameters) memory), domain_weights.py (the update).
Heavy libraries: torch (doge.py, doge_run.py, domain_gradients.py, proxy.py), transformers (domain_gradients.py,
    proxy.py).
"""
