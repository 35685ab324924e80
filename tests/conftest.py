"""pytest settings of all tests."""

import signal

# A shell ignores it in background jobs, and programs that tests start inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore = ["failing_import.py"]  # its import raises
