"""For all tests."""

collect_ignore = ["stumbling.py"]  # it cannot be imported, which is what it is for
