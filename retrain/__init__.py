"""What learns: training, evaluation, gate, drift, release decisions."""
