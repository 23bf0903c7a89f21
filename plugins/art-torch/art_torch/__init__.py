"""PyTorch inference engine and trainer for ART."""
