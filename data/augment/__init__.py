"""Augmentation: transforms, operations, policies and previews."""
