"""What training ends in: packages, whole bases, and adapters merged into a base."""
