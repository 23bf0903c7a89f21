"""Metrics as TensorBoard files."""
