"""Mesh files: readers that trust nothing and writers, one module for each format."""
