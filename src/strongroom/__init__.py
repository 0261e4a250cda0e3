"""Networked agents whose state is persistent and encrypted by default."""

__version__ = "0.1.0"
