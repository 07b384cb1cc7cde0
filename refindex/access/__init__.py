"""Bytes from any URL: ranges, identity, URLs."""
