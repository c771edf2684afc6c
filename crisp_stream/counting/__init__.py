"""A task's examples to its histogram (paper, Section 3.4).

In: files of texts or questions, or vectors that exist already; a dataset with its tokenizer, encoder and tree.
Out: how many windows of the examples fall into each cluster, and a sketch of which examples they were.
Begin with: count_examples.py; embedded_examples.py makes the vectors; task_embeddings.py saves them for several
    methods.
Heavy libraries: none.
"""
