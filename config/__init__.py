"""The settings of a run: schema, reading and merging, checks."""
