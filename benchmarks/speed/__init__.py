"""Speed of the parts: `python -m benchmarks.speed`."""
