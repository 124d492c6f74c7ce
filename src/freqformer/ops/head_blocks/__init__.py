"""Heads in blocks, one for every rank, as they travel between ranks."""
