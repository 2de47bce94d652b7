"""Damaged and hostile files, thrown at the project's own entries by the thousand: `python -m tests.fuzz --help`."""
