"""The life of a label, a briefly trained network: for searches and for `proxies bench` alike.

`slices.py` draws and measures networks of about equal latency, `labels.py` trains them and keeps what came of it.
Which ones are trained is said by `pool.py`, all of them, to judge scores by, and by `adaptive.py`, those that a search
may still learn from. What a table of labels teaches is in `accuracy/learned.py`, how well in `accuracy/scorecard.py`.
"""
