"""ART's core: contracts, data, pure steps, composition. Imports no tensor library, no engine and no plugin, ever."""
