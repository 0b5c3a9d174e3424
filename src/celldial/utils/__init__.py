"""Helpers for messages, warnings, settings, random numbers and threads."""
