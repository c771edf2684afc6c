"""What a task is given by: its examples, as texts or multiple-choice questions.

In: files of questions in several schemas; texts.
Out: questions with their text (paper, Table 7); hashes and bounded sketches by which sets of examples are compared
    without their texts.
Begin with: questions.py, then sketch.py.
Heavy libraries: none.
"""
