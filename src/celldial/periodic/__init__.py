"""Markers, initial angles and phases of a periodic process, in numpy."""
