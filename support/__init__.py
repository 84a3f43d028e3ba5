"""What stands around the method: command line, run folder, processes, checkpoints, tables, report."""
