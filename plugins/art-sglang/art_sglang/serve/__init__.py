"""The engine as its own process: imported by SGLang's interpreter alone."""
