"""What ESPnet sees: names in its registries, models, the teacher, a trainer."""
