"""A run: evaluate, adapt, evaluate. Its plan and checks, its output folder, its summary, and its listeners."""
