"""The probabilistic model and its variational family."""
