"""Parts that each break one promise. `tests/kit/test_broken_parts.py` runs the kit on them and says what must fail."""
