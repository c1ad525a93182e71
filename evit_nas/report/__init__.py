"""A run for people: `page.py` writes report.html, `plot.py` the front for a paper.

`charts.py` and `template.py` draw and print pages, those of `analysis/` as well.
"""
