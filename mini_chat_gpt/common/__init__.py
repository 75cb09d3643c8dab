"""What every part needs and that knows nothing of models: errors, files, processes, the device, the terminal."""
