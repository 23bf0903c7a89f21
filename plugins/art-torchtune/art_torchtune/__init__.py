"""Trainer on torchtune's models for ART."""
