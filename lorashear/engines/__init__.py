"""Results in the formats of inference engines."""
