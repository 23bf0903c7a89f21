"""ART's core: contracts, data, pure steps, composition. Imports no torch, no engine and no plugin, ever."""
