"""Everything about the machine: devices, memory, threads, signals, versions of libraries."""
