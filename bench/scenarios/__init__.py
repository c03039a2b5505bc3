"""
The scenarios, a module each, of one shape: `run(run)` returns its tables.

A table's key begins with the scenario's name; the goals (bench/goals.py) and the README find figures by it.
"""
