"""A local page that follows runs while they go, and displays their assets or a mesh file."""
