"""The listeners of a run: the files of its steps, the live view, and trackers."""
