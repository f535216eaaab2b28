"""What all other packages use: files, signals, devices, processes, text."""
