"""The paper's experiments, and ours: `python -m keras_kare.experiments --help`."""
