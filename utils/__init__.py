"""What knows nothing of clouds or training: errors, files, records."""
