"""What the client does."""
