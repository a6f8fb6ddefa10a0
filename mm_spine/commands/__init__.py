"""The commands of `mm-spine`, one module each, and beside them the helpers that they use.

A command's module is imported for its help text alone, so torch, transformers and whatever imports them is imported
inside the command's function.
"""
