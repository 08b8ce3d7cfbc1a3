"""Where ESPnet and we meet: names in its registries, our options as objects, what a
training needs and its trainer; models built from its configurations and checkpoints."""
