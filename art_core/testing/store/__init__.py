"""What a checkpoint store promises (`art_core.protocols.store`), a test each."""
