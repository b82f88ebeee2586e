"""Enrichers: add, replace or remove fields of an event before it is stored."""
