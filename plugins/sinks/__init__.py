"""Sinks: take batches to a target."""
