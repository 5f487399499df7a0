"""Bloomery: raw text to an aligned chat model, and what every step did."""

__version__ = "0.1.0"
