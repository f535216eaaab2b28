"""What every other package stands on: files, signals, devices, processes, text."""
