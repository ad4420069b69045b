"""What the user gives: images and maps, read with distrust and turned into what a run works with."""
