"""Container images of every service and flavour, from a wheelhouse that the host fills: builds need no network."""
