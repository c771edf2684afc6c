"""The HTML page: one file that needs no network.

In: a dataset, histograms of tasks, runs, saved results, forecasts.
Out: a page with the verdict, the map of the corpus, histograms, curves, evaluation and forecast.
Begin with: page.py, then one file per section. charts.py draws lines as SVG; map.py packs the data that page.js and
    treemap.js draw.
Heavy libraries: none.
"""
