"""Checkpoint store on S3."""
