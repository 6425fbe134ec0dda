"""What every part of the package stands on; it knows nothing of banks, samples or methods."""
