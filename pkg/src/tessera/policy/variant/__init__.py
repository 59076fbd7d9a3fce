"""Which variant answers a request. Pure: a snapshot in, a plan with its losers and their numbers out."""
