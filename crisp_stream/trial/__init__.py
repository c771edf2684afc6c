"""A trial: the whole method at a small size, on any corpus and task.

In: documents of a corpus, examples of a task, minutes.
Out: two judged models, a page with the verdict, and the commands that the trial stands for.
Begin with: own.py (a user's text), trial.py (the steps); split.py takes a sample and holds text out, sizing.py measures
    and chooses how large everything is, commands.py says what to type.
Heavy libraries: torch (sizing.py).
"""
