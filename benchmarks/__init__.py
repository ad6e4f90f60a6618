"""Speed against torch.nn and against the floor; `python -m benchmarks`."""
