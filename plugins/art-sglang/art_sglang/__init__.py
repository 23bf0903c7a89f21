"""SGLang as an inference engine of ART."""
