"""The four contracts that plugins fill: engine, trainer, store, publisher. Protocols, not base classes."""
