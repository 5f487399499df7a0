"""Planted faults that the tests must notice: `make mutations`. `mutation.py` plants one and runs the tests
that are named for it; the faults themselves are the lists in the other files."""
