"""Delivery: one worker per sink takes events off the spool and does not let go before each has its outcome."""
