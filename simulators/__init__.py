"""Physics models. Nothing here knows of `pipeline`."""
