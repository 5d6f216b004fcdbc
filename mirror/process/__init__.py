"""What a process is to the system that runs it: signals, its service manager, processes of its own."""
