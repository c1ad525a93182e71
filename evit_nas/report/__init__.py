"""A run for people: `page.py` writes report.html, `plot.py` the front for a paper, `findings.py` reads the run."""
