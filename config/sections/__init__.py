"""The sections of the settings: names, types, defaults and descriptions."""
