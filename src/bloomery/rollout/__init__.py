"""Prompts in, answers out, and the tensors a policy update needs of them."""
