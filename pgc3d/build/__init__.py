"""The composition root: builds the objects of a run from a configuration and a task."""
