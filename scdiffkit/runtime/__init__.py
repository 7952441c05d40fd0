"""The machine: devices, memory, threads, signals, versions of libraries."""
