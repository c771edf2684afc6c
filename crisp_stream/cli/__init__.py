"""The command `crisp-stream`: one file per group of verbs.

In: arguments of the command line.
Out: calls into the packages below, tables and progress on the terminal, exit code 2 for expected errors.
Begin with: main.py, then verbs.py (what verbs share). A verb imports what it needs when it runs, so `--help` stays
    fast.
Heavy libraries: none.
"""
