"""What a run will take before it begins: trainable parameters, memory by part, time."""
