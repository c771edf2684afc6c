"""A trial: the whole method at a small size, on any corpus and task.

In: documents of a corpus, examples of a task, minutes. Out: two judged models, a page with the verdict, and the
commands that the trial stands for. Modules: `split` takes a sample and holds text out, `sizes` and `sizing` choose
how large everything is, `trial` runs the steps, `commands` says what to type.
"""
