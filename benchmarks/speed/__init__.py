"""How fast jitkit is, against a plain reference and the machine: `python -m benchmarks`.

One module for each name of that command; each has ``run(plan)`` that gives a `results.Result`.
"""
