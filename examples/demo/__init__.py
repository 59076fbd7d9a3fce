"""The main job on real models, from bringing the platform up to taking it down: make demo."""
