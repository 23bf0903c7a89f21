"""Unsloth as a trainer for ART."""
