"""Files, and results in an AnnData."""
