"""Stored bytes of a chunk to values, by the chunk's encoding."""
