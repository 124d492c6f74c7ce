"""Branches of one head, added up by gates."""
