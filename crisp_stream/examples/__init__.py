"""What a task is given by: its examples, as texts or multiple-choice questions.

In: files of questions in many layouts; texts.
Out: questions with their text (paper, Table 7); hashes and bounded sketches by which sets of examples are compared
    without their texts.
Begin with: questions.py, then question_layouts.py, question_answers.py and question_files.py, which read them; then
    sketch.py.
Heavy libraries: none.
"""
