"""One resident base model, many adapters, over HTTP."""
