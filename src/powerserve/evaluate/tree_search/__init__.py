"""Searching the parameters of `--spec tree` that are fastest for two models and one's own prompts.

`grid.py` which parameters · `answers.py` what the target answers, once · `predictions.py` what the
draft would say, each only once · `replay.py` how trees would have fared · `timing.py` what steps
cost · `folder.py` and `database.py` what is kept · `search.py` puts them together · `ranking.py`
and `plot.py` show what came out.
"""
