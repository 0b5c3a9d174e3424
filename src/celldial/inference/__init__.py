"""Results of a trained model, as arrays."""
