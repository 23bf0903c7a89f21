"""The four contracts that plugins fill: engine, trainer, store, publisher. Protocols, not base classes."""

CONTRACT_VERSION = 1
"""Version of the four contracts; a part names the one it was written for."""
