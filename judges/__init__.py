"""More judges: a tree of names, a server, a vote, remembered verdicts, fast scoring; how far to trust one."""
