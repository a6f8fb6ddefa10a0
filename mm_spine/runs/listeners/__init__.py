"""What follows a run while it goes on: its files, a terminal or a log, trackers."""
