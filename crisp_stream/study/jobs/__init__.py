"""The jobs of a study: each made once, in a folder named by what decides its outcome.

In: settings of a study and the jobs that are finished.
Out: datasets, selections, models and their results, side by side where there is room.
Begin with: plan.py (which jobs there are), plan_jobs.py (what decides each), runner.py and worker.py (how they run),
    then the jobs themselves: texts.py, datasets.py, selections.py, models.py.
Heavy libraries: torch (runner.py).
"""
