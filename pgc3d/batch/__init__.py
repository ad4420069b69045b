"""Many runs on one machine, from a list: a process for each, with a status file from which it is resumed."""
