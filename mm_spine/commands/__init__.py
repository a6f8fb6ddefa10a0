"""The commands of `mm-spine`, one module each."""
