"""Ray, and nothing but Ray: where replicas run, and what feeds them."""
