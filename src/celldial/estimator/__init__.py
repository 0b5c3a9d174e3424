"""`VAE`, the scikit-learn estimator."""
