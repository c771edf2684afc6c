"""Which method wins: methods, tasks and seeds at equal training tokens.

In: study.yaml: datasets, specialists, methods, seeds.
Out: a record of every figure, and tables and figures made of it.
Begin with: settings.py (the file), command.py (the run), then jobs/ (what is computed), record/ (what is kept),
    tables/ (what is shown).
Heavy libraries: none.
"""
