"""Configurations as package data: one YAML per benchmark, and DeepSpeed's JSON."""
