"""The machine and the process: cores, memory, peak FLOP/s, devices, signals, the compiler."""
