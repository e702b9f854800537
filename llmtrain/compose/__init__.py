"""From the words of the command line and YAML files to one checked configuration; no torch."""
