"""The trainer's work: packing, loss, the adapter and its optimizer."""
