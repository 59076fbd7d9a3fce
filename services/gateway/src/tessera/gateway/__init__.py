"""The only door: Open Inference for clients, the admin API for people, and the choice of variant and instance in between."""
