"""The record of a study to tables, figures and verdicts.

In: a record (record/).
Out: tables like those of the paper, with intervals over seeds and examples; figures as SVG; answers to claims.
Begin with: report.py (all of it in order), comparisons.py (which models are set against one another), intervals.py,
    then one file per table.
Heavy libraries: none.
"""
