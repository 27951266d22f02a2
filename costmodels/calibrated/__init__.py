"""Prices networks that were never measured, by what one device was measured to do."""
