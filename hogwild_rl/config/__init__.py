"""Settings as data: dataclasses, presets, the command line, and checks."""
