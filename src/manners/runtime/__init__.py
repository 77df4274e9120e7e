"""The machine below a run: device, files, signals, paths, processes, run directories."""
