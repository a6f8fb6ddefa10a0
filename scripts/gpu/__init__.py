"""Measure on one GPU what this project claims: run by scripts/gpu_check.sh."""
