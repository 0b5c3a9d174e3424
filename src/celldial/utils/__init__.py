"""Helpers that know nothing of single cells."""
