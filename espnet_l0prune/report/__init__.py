"""Tables and pictures from saved, plain data."""
