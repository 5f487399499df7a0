"""The command line. Nothing here imports torch, the database or a tokenizer before a command needs it."""

from bloomery.cli.app import main

__all__ = ["main"]
