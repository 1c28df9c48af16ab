"""How hotswap is deployed and watched. What of it is made by programs is made here; none of it is installed."""
