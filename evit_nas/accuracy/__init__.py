"""How good a network will be: proxies that need no training, and what is made of them."""
