"""Tests of multiple choice, whoever answers: MMLU, MMMU and what looks like them.

`question.py` what is asked · `prompts.py` how it is put, and which letter an answer means ·
`chooser.py` who answers, `local.py` a model in this process, `endpoint.py` a server · `journal.py`
what was answered, kept as it comes · `run.py` from questions to answers · `score.py` and `plot.py`
what came out.
"""
