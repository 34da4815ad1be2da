"""The process and the machine: files, signals, several processes, progress."""
