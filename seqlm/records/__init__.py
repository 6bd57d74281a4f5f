"""The JSON files of a study as frozen dataclasses, with one reader and one writer (:mod:`seqlm.records.base`).

A record is one file. Its class names the file and its fields, with their types and units. Whatever reads or writes one
of these files does so through the class.
"""
