"""Markers and initial angles from counts, in numpy."""
