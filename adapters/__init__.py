"""What an adapter is: tensors in, tensors out.

The floor of the project: package files, the op vocabulary, and the execution of ops over a mixed batch.
Knows nothing of HTTP, of model code or of training.
"""
