"""The plugin is where ESPnet and this package meet.

It has the names in ESPnet's registries, our options as objects, the preparation of a
training and its trainer, and the building of models from configurations and checkpoints.
"""
