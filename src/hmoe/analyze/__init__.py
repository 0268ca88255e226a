"""What routers do with a text: traces summed up, and what experts read, cost and are worth."""
