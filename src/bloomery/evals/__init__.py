"""What a model does, measured: the oracle's table, held-out text, distance to a reference; with intervals."""
