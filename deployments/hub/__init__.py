"""Models from a hub: what its name means, what it consists of, where it is fetched from and with which token."""
