"""What ESPnet's networks look like: their blocks, branches, front ends and width."""
