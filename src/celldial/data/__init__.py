"""AnnData, MuData or files in, tensors out."""
