"""The Transformers Trainer, driven by methods: nothing else trains."""
