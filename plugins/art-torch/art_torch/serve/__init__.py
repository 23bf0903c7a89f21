"""The engine's process: HTTP, scheduling, one forward pass over many rows and adapters."""
