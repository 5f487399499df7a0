"""A journey: stages in a row, each run once for the same code, settings and inputs."""
