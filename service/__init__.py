"""Gives loyalty points back when an order is returned."""

__version__ = "0.1.0"
