"""What ESPnet sees: the only code that imports it."""
