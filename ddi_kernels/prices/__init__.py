"""What work costs on a device: milliseconds by measured tables, joules by models and by counters."""
