"""One thread at a time makes the variables of kernels that threads share."""

import threading

LOCK = threading.RLock()
"""Held while variables are made, or found from rows."""
