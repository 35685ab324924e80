"""pytest settings of all tests."""

collect_ignore = ["failing_import.py"]  # its import raises
