"""Configurations as package data: one YAML per benchmark."""
