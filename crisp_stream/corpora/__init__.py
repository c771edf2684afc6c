"""Public text for the demo and for studies.

In: names, versions and sha256 sums of packages of a package registry.
Out: a generalist corpus, specialist sets and question sets, the same bytes for everyone.
Begin with: packages.py (fetching), then demo.py; study.py with study_sources.py.
Heavy libraries: none.
"""
