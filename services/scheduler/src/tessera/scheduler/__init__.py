"""The scheduler: on which node and by which start path an instance comes to be, and when it ends. One leader, standbys behind it."""
