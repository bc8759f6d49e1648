"""Measures of pictures, over arrays and feature functions."""
