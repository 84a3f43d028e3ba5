"""More judges: a tree of names, a server, remembered verdicts, fast scoring; and how far to trust one."""
