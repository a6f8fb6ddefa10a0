"""Trackers of a run's curves and responses. Off unless `reporting.trackers` asks for them.

To add one: write a module here with a class like `tracker.Tracker`, list it in `registry.TRACKERS`, and add its name to
`ReportingConfig.trackers`.

Everything is written below the run's folder. Only Weights & Biases can send it elsewhere: where the user is logged in
and `WANDB_MODE` is not offline. Images then stay on this machine unless `reporting.send_images`.
"""
