"""Files, and what is written to an AnnData."""
