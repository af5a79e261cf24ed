"""What the machine and the process offer: cores, memory, peaks, devices, signals, a compiler."""
