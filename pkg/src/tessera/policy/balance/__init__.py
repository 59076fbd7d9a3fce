"""On which node models live: where their requests go first and their bytes gather."""
