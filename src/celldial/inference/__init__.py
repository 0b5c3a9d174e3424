"""Answers of a trained model as arrays."""
