"""ESPnet's networks are described here: their blocks, branches, front ends and width."""
