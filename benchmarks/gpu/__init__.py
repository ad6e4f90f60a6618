"""A machine with a GPU, checked and measured by one command: `python -m benchmarks.gpu`.

Needs torch and what compiles; uses pytest and compute-sanitizer where they are.
"""
