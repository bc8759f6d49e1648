"""The few plain helpers that every room may use.

choices     a name out of a table, or an error that says what is near
flags       what sample.py can be told
arrays      unit vectors, means of blocks, numbers drawn a row at a time
placement   the axes of a mesh, and which arrays are split over which
files       text and JSON written whole or not at all, read with the file's name in every error
"""
