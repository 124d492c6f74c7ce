"""Converted models of diffusers: what their layers have learned, the windows that they see, and the
folders that hold both."""
