"""Training in several processes: starting them, keeping them in step, and dividing a model among them."""
