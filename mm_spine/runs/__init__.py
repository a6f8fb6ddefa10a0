"""A run in its folder: evaluate, adapt, evaluate; the checks before it, its files, and those who follow it."""
