"""Promises of an inference engine (`art_core.protocols.engine`), a test each."""
