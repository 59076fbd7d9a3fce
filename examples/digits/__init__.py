"""Residual networks for scikit-learn's 8x8 digits: three sizes of one task, and four siblings that share a frozen trunk."""
