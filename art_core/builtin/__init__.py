"""Built-in parts."""
