"""What a run will take: its memory and its time, before it begins and while it goes on."""
