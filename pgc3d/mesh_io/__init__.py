"""Mesh files: validating readers, and writers, one module for each format."""
