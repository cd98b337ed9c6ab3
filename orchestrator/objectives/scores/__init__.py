"""Scores of predictions: numbers in, metrics and tables out. Pure, numpy only.

Each score is an `Accumulator` (`result.py`): every rank adds its own rows, and the states of all ranks, merged in any
order, give the result that one rank with all rows would have.
"""
