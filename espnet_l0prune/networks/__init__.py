"""What ESPnet's networks look like: the only code that knows their attributes."""
