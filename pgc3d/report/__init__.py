"""Reports of runs: the facts of a run folder, and one HTML page that holds them and needs no network."""
