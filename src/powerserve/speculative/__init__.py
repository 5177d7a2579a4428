"""Speculative decoding: propose a tree of tokens, verify it in one step of the target model.

`options.py` what the user may choose · `tree.py` the candidates · `suffix.py` and `draft.py` who
proposes them (`best_first.py`: the original's way) · `cost_model.py` what a step costs on this
machine · `calibration.py` how often proposals come true · `speculator.py` puts them together.
"""
