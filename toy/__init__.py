"""The embedded world: drawn pictures with a taxonomy, and a tiny vision-language policy trained on them."""
