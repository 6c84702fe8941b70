"""Commands of `elboscope`, one file an area; each registers itself in `pipeline.cli`."""
