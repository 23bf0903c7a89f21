"""Promises of a trainer (`art_core.protocols.trainer`), a test each."""
