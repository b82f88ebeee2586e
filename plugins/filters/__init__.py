"""Filters: decide to drop events before they are stored."""
