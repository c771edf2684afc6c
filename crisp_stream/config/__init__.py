"""Recipes: YAML files to checked, typed values.

In: packaged recipes, files of the user, overrides such as `max_duration=400ba`.
Out: a frozen `Recipe`, with every value checked that can be checked without a dataset.
Begin with: sections.py (the keys and their meaning), recipe.py (checks between sections), load.py and files.py (how
    files are found and laid over one another), durations.py.
Heavy libraries: none.
"""
